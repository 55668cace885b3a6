"""/v1/fine_tuning/model_limits: what a job on each base may ask for, and what it gets unasked. All ours.

Bounds are those of `autoclave.spec`, defaults those the base was registered with; nothing is written here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel

from autoclave.errors import ModelError
from autoclave.spec import EarlyStopping, FinetuneMethod, JobSpec, LoraSpec, TrainSpec
from service.catalog import repository
from service.catalog.base_files import linear_modules, max_position_embeddings
from service.catalog.errors import model_not_found
from service.deps import AuthenticatedRoute, CallerDep, DatabaseDep
from service.jobs.defence import SPECS, settings_of, unavailable
from service.jobs.training import FIELDS
from service.models import AlignedBase

router = APIRouter(prefix="/fine_tuning/model_limits", tags=["fine-tuning"], route_class=AuthenticatedRoute)


class Limit(BaseModel):
    """`default` holds for jobs that say nothing. Bounds are included unless `exclusive_...`; what is null
    does not apply. `choices` are all the values there are."""

    default: Any
    minimum: float | None = None
    exclusive_minimum: float | None = None
    maximum: float | None = None
    exclusive_maximum: float | None = None
    choices: list[str] | None = None


class ModelLimits(BaseModel):
    """`hyperparameters` are OpenAI's, `training` and `lora` our blocks in a request. `target_modules` are the
    names that `lora.target_modules` may list (or it is "all-linear"), null if this server does not have
    the files of the base: `target_modules_unavailable` then says so."""

    object: Literal["fine_tuning.model_limits"] = "fine_tuning.model_limits"
    model: str
    max_seq_length: int
    """The highest `training.max_seq_length`."""
    hyperparameters: dict[str, Limit]
    training: dict[str, Limit]
    early_stopping: dict[str, Limit]
    """Of `training.early_stopping`; without a default, the field must be given."""
    lora: dict[str, Limit]
    defence: str
    """`defence.name` of jobs that name none."""
    defences: dict[str, dict[str, Limit]]
    """What `defence` may be on this base: by name, its settings."""
    defences_unavailable: dict[str, str]
    """Why the others may not."""
    target_modules: list[str] | None
    target_modules_unavailable: str | None


class ModelLimitsList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelLimits]


@router.get("")
def list_model_limits(database: DatabaseDep, _: CallerDep, model: str | None = None) -> ModelLimitsList:
    """Of every base, or with `model` of that one."""
    with database.snapshot() as session:
        bases = repository.list_bases(session)
        if model is not None:
            bases = [base for base in bases if base.id == model]
            if not bases:
                raise model_not_found(model, param="model")
        return ModelLimitsList(data=[limits_of(base) for base in bases])


def longest_sequence(base: AlignedBase) -> int:
    """The highest `max_seq_length` of a job on this base: what the base was built for, where that can be
    read, but never less than its default; and never more than the spec allows."""
    default = JobSpec.model_validate(base.default_spec).train.max_seq_length
    built_for = max_position_embeddings(Path(base.path), base.sha256)
    most = int(_bounds(TrainSpec)["max_seq_length"].maximum or default)
    return most if built_for is None else min(most, max(default, built_for))


def limits_of(base: AlignedBase) -> ModelLimits:
    spec = JobSpec.model_validate(base.default_spec)
    train = _with_defaults(_bounds(TrainSpec), spec.train.model_dump(mode="json"))
    longest = longest_sequence(base)
    training = {name: train[name] for name in FIELDS}
    training["max_seq_length"] = train["max_seq_length"].model_copy(update={"maximum": longest})
    not_here = unavailable(base)
    not_here = unavailable(base)
    modules, reason = None, None
    try:
        modules = list(linear_modules(Path(base.path), base.sha256))
    except ModelError as error:
        reason = str(error)
    return ModelLimits(
        model=base.id,
        max_seq_length=longest,
        hyperparameters={
            "n_epochs": train["n_epochs"],
            "batch_size": train["batch_size"],
            "learning_rate_multiplier": _multiplier(train["learning_rate"]),
        },
        training=training,
        early_stopping=_bounds(EarlyStopping),
        lora=_with_defaults(_bounds(LoraSpec), spec.lora.model_dump(mode="json")),
        defence=spec.defence.name,
        defences={name: _defence_settings(name, spec.defence) for name in SPECS if name not in not_here},
        defences_unavailable=not_here,
        target_modules=modules,
        target_modules_unavailable=reason,
    )


def _defence_settings(name: str, default: FinetuneMethod) -> dict[str, Limit]:
    limits = _bounds(SPECS[name])
    if name == default.name:
        limits = _with_defaults(limits, default.model_dump(mode="json"))
    return {setting: limits[setting] for setting in settings_of(name)}


def _multiplier(rate: Limit) -> Limit:
    """Of the base's learning rate."""
    highest = None if rate.maximum is None else rate.maximum / rate.default
    return Limit(default=1.0, exclusive_minimum=0.0, maximum=highest)


def _bounds(spec: type[BaseModel]) -> dict[str, Limit]:
    """Of each field, as its JSON schema has them."""
    properties: dict[str, dict[str, Any]] = spec.model_json_schema()["properties"]
    return {
        name: Limit(
            default=schema.get("default"),
            minimum=schema.get("minimum"),
            exclusive_minimum=schema.get("exclusiveMinimum"),
            maximum=schema.get("maximum"),
            exclusive_maximum=schema.get("exclusiveMaximum"),
            choices=schema.get("enum"),
        )
        for name, schema in properties.items()
    }


def _with_defaults(limits: dict[str, Limit], defaults: dict[str, Any]) -> dict[str, Limit]:
    return {name: limit.model_copy(update={"default": defaults[name]}) for name, limit in limits.items()}
