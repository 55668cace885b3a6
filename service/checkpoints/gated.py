"""An operator's release of a job that missed the safety gate: a new job with a waiver, on the record."""

from __future__ import annotations

import re
from dataclasses import replace

from sqlalchemy import select
from sqlalchemy.orm import Session

from autoclave.errors import InputError
from service import ids
from service.audit.log import Actor, record
from service.checkpoints import repository
from service.checkpoints.kept import GATE_FAILED, is_expired, of_trained_job
from service.checkpoints.starting import start_job
from service.errors import ApiError
from service.jobs.events import add_event
from service.jobs.states import Status
from service.models import Job, JobCheckpoint

MAX_REASON_LENGTH = 1000


class ReleaseError(InputError):
    """This job cannot be released; the message says why."""

    code = "not_releasable"


def release_gated_job(
    session: Session, job_id: str, *, reason: str, actor: Actor, kept_ttl_seconds: float, now: float
) -> str:
    """The id of the new job: it searches, measures and publishes like any other, but a missed gate does not
    end it; its adapter is sanitised as near to the gate as it gets, and its report says so. Asked again while
    that job has neither failed nor been cancelled, the same id. Raises ReleaseError.
    """
    reason = _checked(reason)
    job = session.scalars(select(Job).where(Job.id == job_id).with_for_update()).one_or_none()
    if job is None:
        raise ReleaseError(f"there is no job {job_id!r}")
    if job.status != Status.FAILED.value or job.error_code != GATE_FAILED:
        how = f"it failed with {job.error_code}" if job.error_code else f"its status is {job.status}"
        raise ReleaseError(
            f"{job_id} did not miss the safety gate: {how}. Only a job that failed with {GATE_FAILED} can be "
            "released; its owner can release a checkpoint of any job, through the gate."
        )
    earlier = repository.waived_release(session, job)
    if earlier is not None:
        return earlier
    _require_unreleased_checkpoint(session, job)
    kept = of_trained_job(job)
    if kept is None or is_expired(job, ttl_seconds=kept_ttl_seconds, now=now):
        raise ReleaseError(
            f"the trained adapter of {job_id} is not kept any more: that is done for {kept_ttl_seconds:g} "
            "seconds after the end of the job (KEPT_ADAPTER_TTL_SECONDS). Its owner must train again."
        )
    # So that its checkpoint, if it has one, counts as released by the new job.
    kept = replace(kept, checkpoint_id=job.from_checkpoint)
    waiver = {"reason": reason, "at": int(now)}
    model_id = job.model_id or ids.fine_tuned_model_id(job.base_id, job.organization_id, job.suffix)
    try:
        new_id = start_job(session, job, kept, model_id=model_id, gate_waived=waiver, now=now)
    except ApiError as error:
        raise ReleaseError(f"{job_id} cannot be released: {error.message}") from error
    text = f"An operator waived the safety gate: {reason}"
    data = {"gate_waived": waiver}
    add_event(session, job_id, f"{text}. Released as job {new_id}", now=now, level="warn", data=data)
    add_event(session, new_id, text, now=now, level="warn", data=data)
    record(
        session,
        actor,
        "job.gate_waived",
        job_id,
        organization_id=job.organization_id,
        project_id=job.project_id,
        now=now,
        reason=reason,
        release_job=new_id,
    )
    return new_id


def _require_unreleased_checkpoint(session: Session, job: Job) -> None:
    """Of a job that released a checkpoint: two adapters must not get its name. Locks the checkpoint."""
    if job.from_checkpoint is None:
        return
    lock = select(JobCheckpoint.id).where(JobCheckpoint.id == job.from_checkpoint).with_for_update()
    session.execute(lock)
    other = repository.releases(session, job.project_id, [job.from_checkpoint]).get(job.from_checkpoint)
    if other is not None:
        raise ReleaseError(f"the checkpoint that {job.id} released is released by {other.id} already")


def _checked(reason: str) -> str:
    reason = reason.strip()
    if not reason:
        raise ReleaseError("the reason is empty; it stands in the audit log, the report and the model card")
    if len(reason) > MAX_REASON_LENGTH:
        raise ReleaseError(f"the reason is {len(reason)} characters long; {MAX_REASON_LENGTH} are allowed")
    if re.search(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]", reason):
        raise ReleaseError("the reason must be one line of text, without control characters")
    return reason
