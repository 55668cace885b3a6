"""What can be done with a job from its page: through the functions that the API's routes call."""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy.orm import Session

from service.audit.log import Trail
from service.dashboard.sessions import OperatorCaller
from service.errors import ApiError
from service.jobs import cloning, repository, service
from service.jobs.events import add_event
from service.jobs.service import job_not_found
from service.models import Job
from service.quotas.admission import Admission
from service.quotas.limits import default_quota
from service.settings import Settings

_SIMPLE: dict[str, tuple[Callable[..., None], str]] = {
    "cancel": (service.cancel_job, "job.cancelled"),
    "pause": (service.pause_job, "job.paused"),
    "resume": (service.resume_job, "job.resumed"),
}
DEEDS = (*_SIMPLE, "retry")
_BY_OPERATOR = {
    "cancel": "An operator cancelled the job",
    "pause": "An operator paused the job",
    "resume": "An operator resumed the job",
}


def perform(
    session: Session,
    deed: str,
    job_id: str,
    *,
    project_id: str,
    organization_id: str,
    trail: Trail,
    settings: Settings,
    now: float,
) -> str:
    """The id of the job whose page shows what came of it. Raises ApiError 404, 400 for a job that is in no
    state for it, 429 for a quota."""
    if deed == "retry":
        Admission(project_id, default_quota(settings)).admit_job(session)
        new_id = cloning.retry_job(
            session,
            None,
            project_id=project_id,
            organization_id=organization_id,
            job_id=job_id,
            now=now,
            wandb_mode=settings.wandb_mode_of_jobs,
        )
        trail.record(session, "job.retried", job_id, now=now, new_job_id=new_id)
        return new_id
    if deed not in _SIMPLE:
        raise ApiError(404, f"There is nothing called {deed} that could be done.", code="unknown_url")
    act, entry = _SIMPLE[deed]
    act(session, project_id=project_id, job_id=job_id, now=now)
    trail.record(session, entry, job_id, now=now)
    return job_id


def perform_as_operator(
    session: Session, deed: str, job_id: str, caller: OperatorCaller, *, settings: Settings, now: float
) -> str:
    """On anybody's job; its owner reads in the job's events that an operator did it. Raises as `perform`."""
    job = session.get(Job, job_id)
    if job is None:
        raise job_not_found(job_id)
    trail = Trail(caller.actor, job.organization_id, job.project_id)
    shown = perform(
        session,
        deed,
        job_id,
        project_id=job.project_id,
        organization_id=job.organization_id,
        trail=trail,
        settings=settings,
        now=now,
    )
    text = _BY_OPERATOR.get(deed, f"An operator ran it again as job {shown}")
    # Whoever adds an event holds the row's lock; a retry takes none.
    locked = repository.get_job_for_update(session, job.project_id, job_id)
    assert locked is not None, job_id
    add_event(session, job_id, text, now=now)
    return shown
