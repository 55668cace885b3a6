"""Builds the order of a claimed job from the database."""

from __future__ import annotations

from pathlib import Path

import msgspec
from sqlalchemy.orm import Session

from service.adapters.release import new_model_id
from service.jobs.lease import Claim
from service.jobs.states import Stage
from service.models import AlignedBase, File, Job
from workers.order import (
    BaseOrder,
    FileOrder,
    KeptOrder,
    Order,
    TokenCacheOrder,
    WaiverOrder,
    WandbOrder,
    WandbRunOrder,
)


def order_from_job(
    session: Session,
    claim: Claim,
    *,
    scratch: Path,
    storage_url: str,
    checkpoint_every_seconds: float,
    min_examples: int,
    max_line_bytes: int,
    signing_key_file: Path | None = None,
    wandb_mode: str = "disabled",
    wandb_folder: Path | None = None,
    num_processes: int = 1,
    token_cache: TokenCacheOrder | None = None,
    memory_bytes: int = 0,
) -> Order:
    """`wandb_folder` is where runs are written that are not sent; by default they go with the scratch."""
    job = session.get_one(Job, claim.job_id)
    base = session.get_one(AlignedBase, job.base_id)
    validation = job.validation_file_id
    return Order(
        job_id=job.id,
        fencing_number=claim.fencing_number,
        stage=Stage(job.stage),
        stage_outputs=job.stage_outputs,
        checkpoint=job.checkpoint,
        model_id=job.model_id or new_model_id(job),
        spec=job.spec,
        safety_profile=job.safety_profile,
        base=BaseOrder(
            id=base.id,
            revision=base.revision,
            path=base.path,
            # The job's, not the base's: a base registered anew must not change what a job runs on.
            sha256=job.base_sha256,
            alignment_method=base.alignment_method,
            floor=base.measurements and base.measurements["floor"],
        ),
        training_file=_file(session, job.training_file_id),
        validation_file=_file(session, validation) if validation else None,
        storage_url=storage_url,
        scratch=str(scratch),
        checkpoint_every_seconds=checkpoint_every_seconds,
        min_examples=min_examples,
        max_line_bytes=max_line_bytes,
        signing_key_file=None if signing_key_file is None else str(signing_key_file),
        starts_from=msgspec.convert(job.starts_from, KeptOrder | None),
        gate_waived=msgspec.convert(job.gate_waived, WaiverOrder | None),
        wandb=_wandb(job, wandb_mode, wandb_folder or scratch),
        token_cache=token_cache,
        attempt=claim.attempt,
        worker=claim.owner,
        request_id=claim.request_id,
        num_processes=num_processes,
        memory_bytes=memory_bytes,
    )


def _wandb(job: Job, mode: str, folder: Path) -> WandbOrder | None:
    if not job.integrations:
        return None
    runs = [msgspec.convert(each["wandb"], WandbRunOrder) for each in job.integrations]
    return WandbOrder(mode=mode, folder=str(folder), runs=runs)


def _file(session: Session, file_id: str) -> FileOrder:
    file = session.get_one(File, file_id)
    return FileOrder(id=file.id, storage_key=file.storage_key, sha256=file.sha256)


def log_context(claim: Claim) -> dict[str, str | int]:
    """What every line about an attempt says, of the worker and of its child."""
    context: dict[str, str | int] = {
        "job_id": claim.job_id,
        "attempt": claim.attempt,
        "fencing_number": claim.fencing_number,
        "worker": claim.owner,
    }
    # Of the request that created the job: its line in the API's log has the same.
    return context if claim.request_id is None else {**context, "request_id": claim.request_id}
