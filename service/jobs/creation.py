"""From a request to a queued job: what it refers to is checked, "auto" becomes numbers.

The job, its first events and its doorbell are written in the caller's transaction, all or none.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any

import structlog
from pydantic import ValidationError
from sqlalchemy.orm import Session

from autoclave.spec import JobSpec, LoraSpec, TrainSpec
from service import ids, outbox
from service.catalog import repository as catalog
from service.catalog.errors import model_not_found
from service.catalog.model_limits import longest_sequence
from service.errors import invalid
from service.files import repository as files
from service.files.service import required_dataset
from service.jobs.base_fit import refuse_unfit_base
from service.jobs.defence import unavailable, with_defence
from service.jobs.events import add_event
from service.jobs.integrations import WandbMode, accepted
from service.jobs.requests import CreateJob, Hyperparameters
from service.jobs.states import FIRST, Stage, Status
from service.jobs.training import with_training
from service.jobs.transitions import move
from service.models import File, Job
from service.tracing import current_traceparent

log: structlog.stdlib.BoundLogger = structlog.get_logger()

MAX_SEED = 2**31 - 1


def create_job(
    session: Session,
    request: CreateJob,
    *,
    project_id: str,
    organization_id: str,
    now: float,
    cloned_from: str | None = None,
    wandb_mode: WandbMode = "disabled",
) -> str:
    """The id of the new job, which is queued. Raises ApiError 404 for a model or file that is not
    there for this project, 400 for everything else that cannot work."""
    integrations = accepted(request.integrations, mode=wandb_mode)
    _supervised_hyperparameters(request)  # refuses what no base can do before it looks for one
    base = catalog.get_base(session, request.model)
    if base is None:
        raise model_not_found(request.model, param="model")
    default = JobSpec.model_validate(base.default_spec)
    seed = secrets.randbelow(MAX_SEED + 1) if request.seed is None else request.seed
    hyperparameters, spec = _resolved(
        request, default, seed=seed, longest=longest_sequence(base), not_here=unavailable(base)
    )
    refuse_unfit_base(base, spec.lora)

    training = _dataset(session, project_id, request.training_file, param="training_file")
    validation = None
    if request.validation_file is not None:
        validation = _dataset(session, project_id, request.validation_file, param="validation_file")
        if validation.sha256 == training.sha256:
            raise invalid(
                "The validation file has the same content as the training file: its score would say nothing. "
                "Upload examples that are not trained on.",
                param="validation_file",
                code="validation_equals_training",
            )
    status, stage = FIRST
    job = Job(
        id=ids.job_id(),
        project_id=project_id,
        organization_id=organization_id,
        base_id=base.id,
        base_sha256=base.sha256,
        training_file_id=training.id,
        validation_file_id=None if validation is None else validation.id,
        suffix=request.suffix,
        seed=seed,
        method={"type": "supervised", "supervised": {"hyperparameters": hyperparameters}},
        hyperparameters=hyperparameters,
        spec=spec.model_dump(mode="json"),
        safety_profile=base.safety_profile,
        user_metadata=dict(request.metadata) if request.metadata else None,
        request=request.model_dump(mode="json", exclude_none=True),
        cloned_from=cloned_from,
        integrations=integrations,
        model_id=ids.fine_tuned_model_id(base.id, organization_id, request.suffix),
        created_at=now,
        status=status.value,
        stage=stage.value,
    )
    return add_job(session, job, now=now)


def add_job(session: Session, job: Job, *, now: float) -> str:
    """Write a new job, in the first state, and put it into the queue; its id."""
    job.request_id = structlog.contextvars.get_contextvars().get("request_id")
    job.traceparent = current_traceparent()
    session.add(job)
    session.flush()
    add_event(session, job.id, f"Created fine-tuning job: {job.id}", now=now)
    move(
        session,
        job.id,
        (Status.QUEUED, Stage.PREPARE),
        message="Files validated, moving job to queued state",
        now=now,
    )
    outbox.enqueue(session, job.id, now=now)
    if "request_id" in structlog.contextvars.get_contextvars():
        log.info("job_created", job_id=job.id)  # joins the request's id to the job's
    return job.id


def resolved_spec(
    request: CreateJob, default: JobSpec, *, seed: int, longest: int, not_here: Mapping[str, str]
) -> JobSpec:
    """What a job made from this request would run with, where the base takes `longest` tokens, and not the
    defences `not_here`. Raises ApiError 400."""
    return _resolved(request, default, seed=seed, longest=longest, not_here=not_here)[1]


def _resolved(
    request: CreateJob, default: JobSpec, *, seed: int, longest: int, not_here: Mapping[str, str]
) -> tuple[dict[str, Any], JobSpec]:
    """The hyper-parameters that the API shows, and what the worker runs."""
    chosen = _supervised_hyperparameters(request)
    train = with_training(
        default.train,
        request.training,
        longest=longest,
        has_validation=request.validation_file is not None,
        multiplier_chosen=chosen.learning_rate_multiplier != "auto",
    )
    hyperparameters, train = _resolve(chosen, train, default.train.learning_rate, seed)
    defence = with_defence(default.defence, request.defence, not_here=not_here)
    lora = _lora(request.lora, default.lora)
    return hyperparameters, JobSpec(lora=lora, train=train, defence=defence)


def _supervised_hyperparameters(request: CreateJob) -> Hyperparameters:
    """From `method` or its deprecated predecessor; both may be given if they do not disagree."""
    method = request.method
    if method is not None and method.type != "supervised":
        raise invalid(
            f"Method {method.type!r} is not supported; this server supports 'supervised'.",
            param="method.type",
            code="unsupported_method",
        )
    new = (method.supervised.hyperparameters if method and method.supervised else None) or Hyperparameters()
    old = request.hyperparameters or Hyperparameters()
    merged: dict[str, Any] = {}
    for name in Hyperparameters.model_fields:
        values = [value for value in (getattr(new, name), getattr(old, name)) if value is not None]
        if len(values) == 2 and values[0] != values[1]:
            raise invalid(
                f"'hyperparameters.{name}' and 'method.supervised.hyperparameters.{name}' differ; give one.",
                param=f"hyperparameters.{name}",
            )
        merged[name] = values[0] if values else "auto"
    return Hyperparameters(**merged)


def _resolve(
    chosen: Hyperparameters, train: TrainSpec, base_rate: float, seed: int
) -> tuple[dict[str, Any], TrainSpec]:
    """`train` is what the base and the block `training` say; `base_rate` the base's learning rate. Where the
    request names a learning rate, the multiplier shown is how many times that of the base it is."""

    def number(value: float | str | None, automatic: float) -> float:
        return automatic if value is None or isinstance(value, str) else value

    multiplier = number(chosen.learning_rate_multiplier, train.learning_rate / base_rate)
    shown = {
        "n_epochs": number(chosen.n_epochs, train.n_epochs),
        "batch_size": number(chosen.batch_size, train.batch_size),
        "learning_rate_multiplier": multiplier,
    }
    rate = train.learning_rate if train.learning_rate != base_rate else base_rate * multiplier
    values = train.model_dump() | {
        "n_epochs": shown["n_epochs"],
        "batch_size": shown["batch_size"],
        "learning_rate": rate,
        "seed": seed,
    }
    try:
        return shown, TrainSpec.model_validate(values)
    except ValidationError as error:
        name = str(error.errors()[0]["loc"][0])
        param = "learning_rate_multiplier" if name == "learning_rate" else name
        raise invalid(
            f"Invalid value for {param!r}: this base's learning rate of {base_rate:g} times "
            f"{multiplier:g} is not above 0 and at most 1.",
            param=f"method.supervised.hyperparameters.{param}",
        ) from error


def _lora(given: Mapping[str, Any] | None, default: LoraSpec) -> LoraSpec:
    if not given:
        return default
    try:
        return LoraSpec.model_validate(default.model_dump() | dict(given))
    except ValidationError as error:
        first = error.errors()[0]
        param = f"lora.{first['loc'][0]}"
        if first["type"] == "extra_forbidden":
            known = ", ".join(LoraSpec.model_fields)
            raise invalid(
                f"Unknown parameter: {param!r}; 'lora' takes {known}.", param=param, code="unknown_parameter"
            ) from error
        raise invalid(f"Invalid value for {param!r}: {first['msg']}.", param=param) from error


def _dataset(session: Session, project_id: str, file_id: str, *, param: str) -> File:
    return required_dataset(files.get_file_for_job(session, project_id, file_id), file_id, param=param)
