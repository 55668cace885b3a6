"""A new job with the inputs of an old one."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError
from sqlalchemy.orm import Session

from service.errors import ApiError
from service.jobs.creation import create_job
from service.jobs.integrations import WandbMode
from service.jobs.requests import CreateJob, RetryJob
from service.jobs.service import get_job
from service.models import Job

_HYPERPARAMETERS = frozenset({"method", "hyperparameters"})
"""Two places for the same numbers: a change in one of them replaces both."""


def retry_job(
    session: Session,
    changes: RetryJob | None,
    *,
    project_id: str,
    organization_id: str,
    job_id: str,
    now: float,
    wandb_mode: WandbMode = "disabled",
) -> str:
    """The id of the new job, queued, which may be of a job in any state. "auto" is chosen anew, the seed
    stays. Raises ApiError 404 for a job, file or base that is not there (any more), 400 as a creation does.
    """
    job = get_job(session, project_id, job_id).job
    given = {} if changes is None else changes.model_dump(mode="json", exclude_unset=True)
    old = inputs_of(job)
    if given.keys() & _HYPERPARAMETERS:
        old = {name: value for name, value in old.items() if name not in _HYPERPARAMETERS}
    values = {name: value for name, value in (old | given).items() if value is not None}
    for required in ("model", "training_file"):
        if required not in values:
            raise ApiError(
                400,
                f"{required!r} cannot be taken away; leave it out to keep it.",
                param=required,
                code="missing_required_parameter",
            )
    try:
        request = CreateJob.model_validate(values)
    except ValidationError as error:  # the old request was made under other rules
        first = error.errors()[0]
        param = ".".join(str(part) for part in first["loc"])
        raise ApiError(
            400,
            f"The inputs of job {job_id!r} are not accepted any more: {param}: {first['msg']}.",
            param=param,
            code="invalid_value",
        ) from error
    return create_job(
        session,
        request,
        project_id=project_id,
        organization_id=organization_id,
        now=now,
        cloned_from=job.id,
        wandb_mode=wandb_mode,
    )


def inputs_of(job: Job) -> dict[str, Any]:
    """As its request, with the seed that was drawn if it named none. Jobs older than the record of
    requests are described by what they ran with."""
    inputs = job.request or {
        "model": job.base_id,
        "training_file": job.training_file_id,
        "validation_file": job.validation_file_id,
        "suffix": job.suffix,
        "metadata": job.user_metadata,
        "method": job.method,
        "lora": job.spec["lora"],
        "defence": job.spec.get("defence"),
    }
    return {**inputs, "seed": job.seed}
