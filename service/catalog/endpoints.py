"""/v1/models: the bases that jobs can start from, and the caller's own fine-tuned models."""

from __future__ import annotations

import time
from typing import Annotated

from fastapi import APIRouter, Depends
from starlette.exceptions import HTTPException

from service.adapters import deletion
from service.catalog import repository
from service.catalog.errors import model_not_found
from service.catalog.names import BELOW_A_MODEL
from service.catalog.schemas import ModelDeleted, ModelList, ModelObject, SetExpiry
from service.deps import AuthenticatedRoute, CallerDep, DatabaseDep, StorageDep

router = APIRouter(prefix="/models", tags=["models"], route_class=AuthenticatedRoute)


def _model_id(model: str) -> str:
    """Not what lies below a model: its routes take other methods (and no id ends like them)."""
    if model.endswith(BELOW_A_MODEL):
        raise HTTPException(405)
    return model


ModelId = Annotated[str, Depends(_model_id)]


@router.get("")
def list_models(database: DatabaseDep, caller: CallerDep) -> ModelList:
    with database.snapshot() as session:
        bases = [ModelObject.of_base(base) for base in repository.list_bases(session)]
        adapters = repository.list_adapters(session, caller.project_id)
        return ModelList(data=bases + [ModelObject.of_adapter(adapter) for adapter in adapters])


# Model ids contain slashes: OpenAI's client sends %2F, which is decoded before routing.
@router.get("/{model:path}")
def retrieve_model(model: ModelId, database: DatabaseDep, caller: CallerDep) -> ModelObject:
    with database.snapshot() as session:
        base = repository.get_base(session, model)
        if base is not None:
            return ModelObject.of_base(base)
        adapter = repository.get_adapter(session, caller.project_id, model)
        if adapter is None:
            raise model_not_found(model, param="model")
        return ModelObject.of_adapter(adapter)


@router.delete("/{model:path}")
def delete_model(
    model: ModelId, database: DatabaseDep, storage: StorageDep, caller: CallerDep
) -> ModelDeleted:
    """Deletes the bytes of a fine-tuned model for good; its job stays, and goes on naming it."""
    deletion.delete_model(
        database,
        storage,
        project_id=caller.project_id,
        model_id=model,
        actor=caller.actor,
        now=time.time(),
    )
    return ModelDeleted(id=model)


@router.post("/{model:path}/expiry")
def set_model_expiry(model: str, body: SetExpiry, database: DatabaseDep, caller: CallerDep) -> ModelObject:
    """When a fine-tuned model is deleted by itself, or null: never."""
    adapter = deletion.set_expiry(
        database,
        project_id=caller.project_id,
        model_id=model,
        expires_at=body.expires_at,
        actor=caller.actor,
        now=time.time(),
    )
    return ModelObject.of_adapter(adapter)
