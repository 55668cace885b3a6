"""Cancelling a job and reading its report: the decisions between the endpoints and the queries."""

from __future__ import annotations

from typing import Any

from sqlalchemy.orm import Session

from service.errors import ApiError, invalid, not_found
from service.jobs import repository
from service.jobs.events import add_event
from service.jobs.repository import JobView
from service.jobs.states import TERMINAL, Stage, Status
from service.jobs.transitions import move


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
    job = repository.get_job_for_update(session, project_id, job_id)
    if job is None:
        raise job_not_found(job_id)
    status = Status(job.status)
    if status in TERMINAL:
        raise invalid(
            f"Job {job_id!r} has already {_ENDED[status]}.", param=None, code="job_already_terminal"
        )
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


def job_not_found(job_id: str, *, param: str = "job_id") -> ApiError:
    return not_found("fine-tuning job", job_id, param=param, code="job_not_found")


_ENDED = {
    Status.SUCCEEDED: "succeeded",
    Status.FAILED: "failed",
    Status.CANCELLED: "been cancelled",
}
