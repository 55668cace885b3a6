"""Queries for jobs and their events. Every one is bound to a project: what is not yours is not there.

Changing a job's state is not here but in `service.jobs.transitions` and `service.jobs.lease`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sqlalchemy import BindParameter, Select, bindparam, func, select, update
from sqlalchemy.orm import Session

from service.jobs.estimates import queue_position, queue_positions
from service.jobs.states import Status
from service.models import Adapter, AlignedBase, Job, JobEvent
from service.pagination import after_row, cut
from service.scheduling.waiting import Wait, Waits


@dataclass(frozen=True)
class JobView:
    """A job with what its representation needs from other tables."""

    job: Job
    base_revision: str
    fine_tuned_model: str | None
    queue_position: int | None = None
    adapter_expires_at: float | None = None
    adapter_deleted_at: float | None = None
    wait: Wait | None = None


# The columns of a JobView but for the place in the queue; those of the adapter are null without one.
JobRows = Select[Job, str, str, float | None, float | None]


@dataclass(frozen=True, kw_only=True)
class JobFilters:
    """All that are given must match."""

    metadata: Mapping[str, str] = field(default_factory=dict)
    without_metadata: bool = False
    statuses: Sequence[str] = ()
    model: str | None = None
    created_after: float | None = None
    """Seconds since the epoch, as the job shows it: the job's own second counts as neither."""
    created_before: float | None = None

    def applied(self, query: JobRows) -> JobRows:
        for key, value in self.metadata.items():
            query = query.where(Job.user_metadata[key].as_string() == value)
        if self.without_metadata:
            query = query.where(Job.user_metadata.is_(None))
        if self.statuses:
            query = query.where(Job.status.in_(self.statuses))
        if self.model is not None:
            query = query.where(Job.base_id == self.model)
        if self.created_after is not None:
            query = query.where(Job.created_at >= self.created_after + 1)
        if self.created_before is not None:
            query = query.where(Job.created_at < self.created_before)
        return query


def _views(project_id: str | BindParameter[str]) -> JobRows:
    return (
        select(Job, AlignedBase.revision, Adapter.model_id, Adapter.expires_at, Adapter.deleted_at)
        .join(AlignedBase, AlignedBase.id == Job.base_id)
        .outerjoin(Adapter, Adapter.job_id == Job.id)
        .where(Job.project_id == project_id)
    )


# Built once: it is what clients ask for most, and building it takes as long as running it.
_ONE_JOB = _views(bindparam("project_id")).where(Job.id == bindparam("job_id"))


def get_job(session: Session, project_id: str, job_id: str) -> JobView | None:
    row = session.execute(
        _ONE_JOB,
        {"project_id": project_id, "job_id": job_id},
        execution_options={"populate_existing": True},
    ).first()
    if row is None:
        return None
    place, wait = None, None
    if row[0].status == Status.QUEUED:
        place = queue_position(session, row[0])
        wait = Waits(session, project_id, now=time.time()).why(row[0])
    return JobView(row[0], row[1], row[2], place, row[3], row[4], wait)


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
    filters: JobFilters,
    after: tuple[float, str] | None,
    limit: int,
) -> tuple[list[JobView], bool]:
    """One page, newest first, and whether there is more."""
    query = filters.applied(_views(project_id))
    query = after_row(query, Job.created_at, Job.id, after=after)
    rows, has_more = cut(list(session.execute(query.limit(limit + 1))), limit)
    positions: dict[str, int] = {}
    waits: dict[str, Wait | None] = {}
    if any(row[0].status == Status.QUEUED for row in rows):
        positions = queue_positions(session, project_id)
        found = Waits(session, project_id, now=time.time())
        waits = {row[0].id: found.why(row[0]) for row in rows}
    return [
        JobView(row[0], row[1], row[2], positions.get(row[0].id), row[3], row[4], waits.get(row[0].id))
        for row in rows
    ], has_more


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


def status_of(session: Session, job_id: str) -> str:
    return session.scalars(select(Job.status).where(Job.id == job_id)).one()


def events_after(session: Session, job_id: str, *, after: int, limit: int) -> tuple[list[JobEvent], bool]:
    """One page, oldest first, and whether there is more."""
    query = (
        select(JobEvent)
        .where(JobEvent.job_id == job_id, JobEvent.sequence > after)
        .order_by(JobEvent.sequence)
        .limit(limit + 1)
    )
    return cut(list(session.scalars(query)), limit)


def newest_events(session: Session, job_ids: Sequence[str]) -> dict[str, int]:
    """The highest sequence of each job that has an event."""
    newest: dict[str, int] = {}
    for start in range(0, len(job_ids), _IDS_PER_QUERY):
        query = (
            select(JobEvent.job_id, func.max(JobEvent.sequence))
            .where(JobEvent.job_id.in_(job_ids[start : start + _IDS_PER_QUERY]))
            .group_by(JobEvent.job_id)
        )
        newest.update((row[0], row[1]) for row in session.execute(query))
    return newest


_IDS_PER_QUERY = 500
