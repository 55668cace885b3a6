"""Cancelling, pausing and resuming a job, reading its report: the decisions between endpoints and queries."""

from __future__ import annotations

from typing import Any

from sqlalchemy.orm import Session

from service import outbox
from service.errors import ApiError, invalid, not_found
from service.jobs import repository
from service.jobs.events import add_event
from service.jobs.repository import JobView
from service.jobs.states import TERMINAL, Stage, Status
from service.jobs.transitions import move
from service.models import Job


def get_job(session: Session, project_id: str, job_id: str) -> JobView:
    """Raises ApiError 404."""
    view = repository.get_job(session, project_id, job_id)
    if view is None:
        raise job_not_found(job_id)
    return view


def cancel_job(session: Session, *, project_id: str, job_id: str, now: float) -> None:
    """A queued job is cancelled at once. A running one is asked to stop and becomes `cancelled` when
    its process is gone; asking twice changes nothing. Raises ApiError 404, or 400 if the job has ended
    (not 409: OpenAI's client would retry that)."""
    job = _live_job(session, project_id, job_id)
    status = Status(job.status)
    if status is Status.RUNNING:
        if job.cancel_requested_at is None:
            repository.request_cancel(session, job_id, now=now)
            add_event(session, job_id, "Cancel requested; the job ends at its next step", now=now)
        return
    move(
        session,
        job_id,
        (Status.CANCELLED, Stage(job.stage)),
        message="The job was cancelled",
        now=now,
        only_from=status,
        values={"cancel_requested_at": now},
    )


def pause_job(session: Session, *, project_id: str, job_id: str, now: float) -> None:
    """A queued job is paused at once. A running one is asked to stop at its next step with a checkpoint;
    asking twice, or after a cancel, changes nothing. Raises ApiError 404, or 400 for a job that has ended
    or whose files are still being validated."""
    job = _live_job(session, project_id, job_id)
    status = Status(job.status)
    if status is Status.VALIDATING_FILES:
        raise invalid(
            f"The files of job {job_id!r} are still being validated; pause it once it is queued.",
            param=None,
            code="job_not_pausable",
        )
    if status is Status.RUNNING:
        if job.pause_requested_at is None and job.cancel_requested_at is None:
            repository.request_pause(session, job_id, now=now)
            text = "Pause requested; the job stops at its next step and keeps what it has done"
            add_event(session, job_id, text, now=now)
    elif status is Status.QUEUED:
        move(
            session,
            job_id,
            (Status.PAUSED, Stage(job.stage)),
            message="The job was paused",
            now=now,
            only_from=Status.QUEUED,
        )


def resume_job(session: Session, *, project_id: str, job_id: str, now: float) -> None:
    """A paused job goes to the end of the queue and on from where it stopped; a pause that is still
    on its way is taken back. A job that is not paused stays as it is. Raises ApiError 404, or 400 for a
    job that has ended."""
    job = _live_job(session, project_id, job_id)
    status = Status(job.status)
    if status is Status.PAUSED:
        move(
            session,
            job_id,
            (Status.QUEUED, Stage(job.stage)),
            message="The job was resumed, back in the queue",
            now=now,
            only_from=Status.PAUSED,
        )
        outbox.enqueue(session, job_id, now=now)
    elif job.pause_requested_at is not None:
        repository.request_pause(session, job_id, now=None)
        add_event(session, job_id, "The request to pause was taken back", now=now)


def safety_report(session: Session, *, project_id: str, job_id: str) -> dict[str, Any]:
    """The whole report, also of a job that failed the gate. Raises ApiError 404."""
    job = get_job(session, project_id, job_id).job
    if job.safety_report is None:
        raise ApiError(
            404,
            f"Job {job_id!r} has no safety report (status {job.status}, stage {job.stage}); "
            "it is written when the stage evaluate ends or the safety gate refuses the job.",
            param="job_id",
            code="report_not_ready",
        )
    return job.safety_report


def _live_job(session: Session, project_id: str, job_id: str) -> Job:
    """Locks the row. Raises ApiError 404, or 400 if the job has ended."""
    job = repository.get_job_for_update(session, project_id, job_id)
    if job is None:
        raise job_not_found(job_id)
    status = Status(job.status)
    if status in TERMINAL:
        raise invalid(
            f"Job {job_id!r} has already {_ENDED[status]}.", param=None, code="job_already_terminal"
        )
    return job


def job_not_found(job_id: str, *, param: str = "job_id") -> ApiError:
    return not_found("fine-tuning job", job_id, param=param, code="job_not_found")


_ENDED = {
    Status.SUCCEEDED: "succeeded",
    Status.FAILED: "failed",
    Status.CANCELLED: "been cancelled",
}
