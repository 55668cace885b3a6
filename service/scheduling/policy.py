"""Which job a worker gets next (docs/decisions/0022).

Of the projects with a job that this worker can run, and that run fewer than they may: the one with the highest
priority; among those the one with the fewest running jobs, then with the least running time lately, then whose
first job waits longest. Of that project, the job that waits longest.
"""

from __future__ import annotations

from typing import NamedTuple

from sqlalchemy import ColumnElement, and_, exists, func, or_, select
from sqlalchemy.orm import Session

from service.jobs.states import Status
from service.models import Job, ProjectQueue, ProjectQuota
from service.quotas.limits import Quota
from service.scheduling.workers import Kind

_MOST_PROJECTS_TRIED = 8


class Turn(NamedTuple):
    job_id: str
    project_id: str
    limit: int
    """How many jobs of the project may run at once; 0: any number."""


def next_job(session: Session, kind: Kind, *, default: Quota, max_attempts: int) -> Turn | None:
    """The job, whose row and whose project's row are locked until the transaction ends; None if there is none for
    this kind of worker.

    Workers that ask at the same moment do not wait for each other: a project that one of them is being given a
    job of is passed over by the others, unless nothing else is left.
    """
    runnable = and_(*_runnable(kind, max_attempts))
    limit = func.coalesce(ProjectQuota.concurrent_jobs, default.concurrent_jobs).label("limit")
    query = (
        select(ProjectQueue.project_id, limit)
        .outerjoin(ProjectQuota, ProjectQuota.project_id == ProjectQueue.project_id)
        .where(
            ProjectQueue.head_queued_at.is_not(None),
            or_(ProjectQueue.worker_class.is_(None), ProjectQueue.worker_class == kind.worker_class),
            or_(limit.element == 0, ProjectQueue.num_running < limit.element),
            exists().where(Job.project_id == ProjectQueue.project_id, runnable),
        )
        .order_by(
            ProjectQueue.rank,
            ProjectQueue.num_running,
            ProjectQueue.recent,
            ProjectQueue.head_queued_at,
            ProjectQueue.project_id,
        )
        .limit(1)
    )
    tried: list[str] = []
    waits = False
    while len(tried) < _MOST_PROJECTS_TRIED:
        others = query.where(ProjectQueue.project_id.not_in(tried)) if tried else query
        row = session.execute(others.with_for_update(of=ProjectQueue, skip_locked=not waits)).first()
        if row is None:
            if waits:
                return None
            waits = True  # for those that were passed over
            continue
        job_id = session.scalars(
            select(Job.id)
            .where(Job.project_id == row.project_id, runnable)
            .order_by(Job.queued_at, Job.id)
            .limit(1)
            # Its owner may be cancelling it; waiting for that with the project's row in hand could deadlock.
            .with_for_update(skip_locked=True)
        ).first()
        if job_id is not None:
            return Turn(job_id, row.project_id, row.limit)
        tried.append(row.project_id)
    return None


def _runnable(kind: Kind, max_attempts: int) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = [
        Job.status == Status.QUEUED.value,
        Job.cancel_requested_at.is_(None),
        Job.attempt_count < max_attempts,
    ]
    if kind.memory_bytes:
        fits = Job.needed_memory_bytes <= kind.memory_bytes
        conditions.append(or_(Job.needed_memory_bytes.is_(None), fits))
    return conditions
