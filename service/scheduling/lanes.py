"""A project's row in `project_queues`: kept in step with its jobs.

Whoever changes whether a job waits or runs calls `refresh` afterwards, in the same transaction. It locks the
row first and counts afterwards, so of two transactions that change jobs of one project the later one counts
the other's change. Job rows are locked before this row, and whoever holds this row waits for no job's; rows
of several projects are locked in the order of their ids.
"""

from __future__ import annotations

import math
from typing import Any

from sqlalchemy import (
    BindParameter,
    ColumnClause,
    ColumnElement,
    Integer,
    Update,
    bindparam,
    case,
    func,
    literal_column,
    select,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session
from sqlalchemy.sql.dml import ReturningUpdate

from service import outbox
from service.jobs.states import Status
from service.models import Job, ProjectQueue

HALF_LIFE_SECONDS = 3600.0
"""Running time counts half as much for every hour that passed since."""
COUNTED_WAITING = 1001
# A literal: a limit that is a parameter makes PostgreSQL plan the statement anew each time.
_MOST_COUNTED: ColumnClause[int] = literal_column(str(COUNTED_WAITING), Integer)
# Literals: an index over the rows of one status serves no statement that takes the status as a parameter.
QUEUED: ColumnClause[str] = literal_column(f"'{Status.QUEUED.value}'")
RUNNING: ColumnClause[str] = literal_column(f"'{Status.RUNNING.value}'")


def charged(recent: float, seconds: float, *, now: float) -> float:
    """`recent` after `seconds` of running time were booked.

    It is the base-2 logarithm of the sum of booked seconds, each halved per half-life, as they would count at
    the epoch: a project that books nothing keeps its number while those that do rise above it, so rows need
    not be touched as time passes. 0 is a project that never ran.
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
    """After a job of the project came to wait or to run, or ceased to; `used_seconds` of running time are
    added to what it used lately. If it ran as many as it may and does not now, its next job is rung for."""
    queue = locked(session, project_id)
    was_full = bool(queue.running_limit) and queue.num_running >= (queue.running_limit or 0)
    recent = charged(queue.recent, used_seconds, now=now)
    num_running = count(session, project_id, recent=recent)
    if was_full and num_running < (queue.running_limit or 0):
        ring(session, project_id, now=now)


def count(session: Session, project_id: str, *, recent: float) -> int:
    """Count the project's jobs, behind the lock of its row; how many run."""
    return int(session.connection().execute(_COUNT, {"of": project_id, "lately": recent}).scalar_one())


def one_more_runs(session: Session, project_id: str, *, running_limit: int) -> None:
    """A job of the project was claimed behind the lock of its row: what `count` would find, without
    counting."""
    session.connection().execute(_ONE_MORE_RUNS, {"of": project_id, "most": running_limit})


def one_more(
    project_id: ColumnElement[str], *besides: ColumnElement[bool], most: ColumnElement[int]
) -> Update:
    """The statement of `one_more_runs`. `besides` says which queued jobs still wait, for a statement that
    does not see yet what it takes."""
    jobs, queues = Job.__table__.c, ProjectQueue.__table__
    # At the bound there may be any number; the next count says.
    fewer = case(
        (queues.c.num_waiting >= COUNTED_WAITING, queues.c.num_waiting), else_=queues.c.num_waiting - 1
    )
    first = select(func.min(jobs.queued_at)).where(
        jobs.project_id == project_id, jobs.status == QUEUED, *besides
    )
    return _row(project_id).values(
        num_running=queues.c.num_running + 1,
        num_waiting=fewer,
        head_queued_at=first.scalar_subquery(),
        running_limit=most,
    )


def _row(project_id: ColumnElement[str]) -> Update:
    queues = ProjectQueue.__table__
    return update(queues).where(  # type: ignore[arg-type]
        queues.c.project_id == project_id
    )


def _count_statement() -> ReturningUpdate[Any]:
    jobs, queues = Job.__table__.c, ProjectQueue.__table__
    of: BindParameter[str] = bindparam("of")
    waiting = select(jobs.id).where(jobs.project_id == of, jobs.status == QUEUED).limit(_MOST_COUNTED)
    running = select(jobs.id).where(jobs.project_id == of, jobs.status == RUNNING)
    first = select(func.min(jobs.queued_at)).where(jobs.project_id == of, jobs.status == QUEUED)
    return (
        _row(of)
        .values(
            num_running=select(func.count()).select_from(running.subquery()).scalar_subquery(),
            num_waiting=select(func.count()).select_from(waiting.subquery()).scalar_subquery(),
            head_queued_at=first.scalar_subquery(),
            recent=bindparam("lately"),
        )
        .returning(queues.c.num_running)
    )


_COUNT = _count_statement()
_ONE_MORE_RUNS = one_more(bindparam("of"), most=bindparam("most"))


def ring(session: Session, project_id: str, *, now: float, count: int = 1) -> None:
    """For the first jobs of the project that wait."""
    query = (
        select(Job.id)
        .where(Job.project_id == project_id, Job.status == QUEUED)
        .order_by(Job.queued_at, Job.id)
        .limit(count)
    )
    for job_id in session.scalars(query).all():
        outbox.add(session, job_id, now=now)
