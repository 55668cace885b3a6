"""Queries for jobs and their events. Every one is bound to a project: what is not yours is not there.

Changing a job's state is not here but in `service.jobs.transitions` and `service.jobs.lease`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import Select, select, update
from sqlalchemy.orm import Session

from service.jobs.estimates import queue_position, queue_positions
from service.jobs.states import Status
from service.models import Adapter, AlignedBase, Job, JobEvent
from service.pagination import after_row, cut


@dataclass(frozen=True)
class JobView:
    """A job with what its representation needs from other tables."""

    job: Job
    base_revision: str
    fine_tuned_model: str | None
    queue_position: int | None = None


def _views(project_id: str) -> Select[Job, str, str]:
    return (
        select(Job, AlignedBase.revision, Adapter.model_id)
        .join(AlignedBase, AlignedBase.id == Job.base_id)
        .outerjoin(Adapter, Adapter.job_id == Job.id)
        .where(Job.project_id == project_id)
    )


def get_job(session: Session, project_id: str, job_id: str) -> JobView | None:
    row = session.execute(
        _views(project_id).where(Job.id == job_id), execution_options={"populate_existing": True}
    ).first()
    if row is None:
        return None
    return JobView(row[0], row[1], row[2], queue_position(session, row[0]))


def get_job_for_update(session: Session, project_id: str, job_id: str) -> Job | None:
    """Locks the row: no worker can claim or end the job before this transaction ends."""
    query = select(Job).where(Job.id == job_id, Job.project_id == project_id).with_for_update()
    return session.scalars(query).one_or_none()


def position(session: Session, project_id: str, job_id: str) -> tuple[float, str] | None:
    query = select(Job.created_at, Job.id).where(Job.id == job_id, Job.project_id == project_id)
    row = session.execute(query).first()
    return None if row is None else (row[0], row[1])


def list_jobs(
    session: Session,
    project_id: str,
    *,
    metadata: Mapping[str, str] | None,
    without_metadata: bool,
    after: tuple[float, str] | None,
    limit: int,
) -> tuple[list[JobView], bool]:
    """One page, newest first, and whether there is more. `metadata` pairs must all match."""
    query = _views(project_id)
    for key, value in (metadata or {}).items():
        query = query.where(Job.user_metadata[key].as_string() == value)
    if without_metadata:
        query = query.where(Job.user_metadata.is_(None))
    query = after_row(query, Job.created_at, Job.id, after=after)
    rows, has_more = cut(list(session.execute(query.limit(limit + 1))), limit)
    positions = queue_positions(session) if any(row[0].status == Status.QUEUED for row in rows) else {}
    return [JobView(row[0], row[1], row[2], positions.get(row[0].id)) for row in rows], has_more


def request_cancel(session: Session, job_id: str, *, now: float) -> None:
    """The worker that holds the job sees it with its next heartbeat."""
    session.execute(update(Job).where(Job.id == job_id).values(cancel_requested_at=now))


def request_pause(session: Session, job_id: str, *, now: float | None) -> None:
    """As a cancel; None takes it back."""
    session.execute(update(Job).where(Job.id == job_id).values(pause_requested_at=now))


def event_position(session: Session, job_id: str, event_id: str) -> int | None:
    query = select(JobEvent.sequence).where(JobEvent.id == event_id, JobEvent.job_id == job_id)
    return session.scalars(query).one_or_none()


def list_events(
    session: Session, job_id: str, *, after: int | None, limit: int
) -> tuple[list[JobEvent], bool]:
    """One page, newest first, and whether there is more."""
    query = select(JobEvent).where(JobEvent.job_id == job_id).order_by(JobEvent.sequence.desc())
    if after is not None:
        query = query.where(JobEvent.sequence < after)
    return cut(list(session.scalars(query.limit(limit + 1))), limit)
