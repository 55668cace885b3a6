"""Models on the wire. Ours are `parent`, the base of a fine-tuned model, `expires_at`, when it will be
deleted (both null for a base), and of a base (null for fine-tuned models, whose reports have theirs):
`harmful_score`, the percentage of harmful prompts that it answers harmfully by itself, null where it was not
measured; `alignment_method`, how it was aligned; `sha256` of its weights, to which adapters belong."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from service.models import Adapter, AlignedBase
from service.wire import WHOLE, Request

OPERATOR = "autoclave"


class ModelObject(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    parent: str | None
    expires_at: int | None
    harmful_score: float | None
    alignment_method: str | None
    sha256: str | None

    @classmethod
    def of_base(cls, base: AlignedBase) -> ModelObject:
        return cls(
            id=base.id,
            created=int(base.created_at),
            owned_by=OPERATOR,
            parent=None,
            expires_at=None,
            harmful_score=base.measurements and base.measurements["floor"]["harmful_score"],
            alignment_method=base.alignment_method,
            sha256=base.sha256,
        )

    @classmethod
    def of_adapter(cls, adapter: Adapter) -> ModelObject:
        return cls(
            id=adapter.model_id,
            created=int(adapter.created_at),
            owned_by=adapter.organization_id,
            parent=adapter.base_id,
            expires_at=None if adapter.expires_at is None else int(adapter.expires_at),
            harmful_score=None,
            alignment_method=None,
            sha256=None,
        )


class SetExpiry(Request):
    expires_at: Annotated[int, Field(ge=0, le=2**53, strict=True), WHOLE] | None


class ModelDeleted(BaseModel):
    id: str
    object: Literal["model"] = "model"
    deleted: Literal[True] = True


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelObject]
