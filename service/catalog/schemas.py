"""Models on the wire. `parent` is ours: the base of a fine-tuned model, null for a base."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel

from service.models import Adapter, AlignedBase

OPERATOR = "autoclave"


class ModelObject(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    parent: str | None

    @classmethod
    def of_base(cls, base: AlignedBase) -> ModelObject:
        return cls(id=base.id, created=int(base.created_at), owned_by=OPERATOR, parent=None)

    @classmethod
    def of_adapter(cls, adapter: Adapter) -> ModelObject:
        return cls(
            id=adapter.model_id,
            created=int(adapter.created_at),
            owned_by=adapter.organization_id,
            parent=adapter.base_id,
        )


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelObject]
