"""A project's row in `project_queues`: kept in step with its jobs.

Whoever changes whether a job waits or runs calls `refresh` afterwards, in the same transaction. It locks the row
first and counts afterwards, so of two transactions that change jobs of one project the later one counts the
other's change. Job rows are locked before this row, and whoever holds this row waits for no job's; rows of several
projects are locked in the order of their ids.
"""

from __future__ import annotations

import math

from sqlalchemy import ScalarSelect, func, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from service import outbox
from service.jobs.states import Status
from service.models import Job, ProjectQueue

HALF_LIFE_SECONDS = 3600.0
"""Running time counts half as much for every hour that passed since."""
COUNTED_WAITING = 1001


def charged(recent: float, seconds: float, *, now: float) -> float:
    """`recent` after `seconds` of running time were booked.

    It is the base-2 logarithm of the sum of booked seconds, each halved per half-life, as they would count at
    the epoch: a project that books nothing keeps its number while those that do rise above it, so rows need not
    be touched as time passes. 0 is a project that never ran.
    """
    if seconds <= 0:
        return recent
    today = now / HALF_LIFE_SECONDS
    left = 2.0 ** (recent - today) if recent else 0.0
    return today + math.log2(left + seconds)


def recent_seconds(recent: float, *, now: float) -> float:
    """What `recent` stands for now."""
    return 2.0 ** (recent - now / HALF_LIFE_SECONDS) if recent else 0.0


def locked(session: Session, project_id: str) -> ProjectQueue:
    """The project's row, made if there is none, locked until the transaction ends."""
    query = (
        select(ProjectQueue)
        .where(ProjectQueue.project_id == project_id)
        .with_for_update()
        .execution_options(populate_existing=True)
    )
    row = session.scalars(query).one_or_none()
    if row is None:
        insert = postgresql.insert if session.get_bind().dialect.name == "postgresql" else sqlite.insert
        values = {"project_id": project_id, "rank": 0, "num_running": 0, "num_waiting": 0, "recent": 0.0}
        session.execute(insert(ProjectQueue).values(**values).on_conflict_do_nothing())
        row = session.scalars(query).one()
    return row


def refresh(session: Session, project_id: str, *, now: float, used_seconds: float = 0.0) -> None:
    """After a job of the project came to wait or to run, or ceased to; `used_seconds` of running time are added
    to what it used lately. If it ran as many as it may and does not now, its next job is rung for."""
    queue = locked(session, project_id)
    was_full = bool(queue.running_limit) and queue.num_running >= (queue.running_limit or 0)
    recent = charged(queue.recent, used_seconds, now=now)
    num_running = count(session, project_id, recent=recent)
    if was_full and num_running < (queue.running_limit or 0):
        ring(session, project_id, now=now)


def count(session: Session, project_id: str, **values: object) -> int:
    """Count the project's jobs, behind the lock of its row, and write that with `values`; how many run."""
    statement = (
        update(ProjectQueue)
        .where(ProjectQueue.project_id == project_id)
        .values(
            num_running=_number(project_id, Status.RUNNING),
            num_waiting=_number(project_id, Status.QUEUED, at_most=COUNTED_WAITING),
            head_queued_at=select(func.min(Job.queued_at))
            .where(Job.project_id == project_id, Job.status == Status.QUEUED.value)
            .scalar_subquery(),
            **values,
        )
        .returning(ProjectQueue.num_running)
        .execution_options(synchronize_session=False)
    )
    return session.execute(statement).scalar_one()


def _number(project_id: str, status: Status, *, at_most: int | None = None) -> ScalarSelect[int]:
    rows = select(Job.id).where(Job.project_id == project_id, Job.status == status.value).limit(at_most)
    return select(func.count()).select_from(rows.subquery()).scalar_subquery()


def ring(session: Session, project_id: str, *, now: float, count: int = 1) -> None:
    """For the first jobs of the project that wait."""
    query = (
        select(Job.id)
        .where(Job.project_id == project_id, Job.status == Status.QUEUED.value)
        .order_by(Job.queued_at, Job.id)
        .limit(count)
    )
    for job_id in session.scalars(query).all():
        outbox.add(session, job_id, now=now)
