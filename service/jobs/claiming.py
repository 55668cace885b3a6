"""The UPDATE that is a claim, built once: of one job, of the one whose turn it is, or as a part of a single
statement that finds it and writes all else that belongs to a claim (PostgreSQL)."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from sqlalchemy import (
    CTE,
    ColumnElement,
    Float,
    Select,
    String,
    and_,
    bindparam,
    case,
    delete,
    func,
    insert,
    literal,
    literal_column,
    select,
    true,
    update,
)
from sqlalchemy.sql.dml import ReturningUpdate

from service.jobs.attempts import KEPT_ATTEMPTS
from service.jobs.states import Status
from service.models import Job, JobAttempt, JobEvent, ProjectQueue
from service.scheduling import lanes, policy

STARTED = "Fine-tuning job started"
RESUMED = "Fine-tuning job resumed at stage "


def _claiming(which: ColumnElement[bool]) -> ReturningUpdate[Any]:
    """The claim: one UPDATE."""
    jobs = Job.__table__
    return (
        update(jobs)  # type: ignore[arg-type]
        .where(
            which,
            jobs.c.status == lanes.QUEUED,
            jobs.c.cancel_requested_at.is_(None),
            jobs.c.attempt_count < bindparam("max_attempts"),
        )
        .values(
            status=Status.RUNNING.value,
            lease_owner=bindparam("owner"),
            lease_expires_at=bindparam("until"),
            heartbeat_at=bindparam("at"),
            fencing_number=jobs.c.fencing_number + 1,
            attempt_count=jobs.c.attempt_count + 1,
            progress=None,
            progress_at=None,
            stage_began_at=bindparam("at"),
            started_at=func.coalesce(jobs.c.started_at, bindparam("at")),
        )
        .returning(
            jobs.c.id,
            jobs.c.lease_owner,
            jobs.c.fencing_number,
            jobs.c.stage,
            jobs.c.attempt_count,
            jobs.c.request_id,
            jobs.c.traceparent,
            jobs.c.project_id,
        )
    )


TAKE_ONE = _claiming(Job.__table__.c.id == bindparam("job_id"))


@lru_cache
def take_head(*, sized: bool) -> ReturningUpdate[Any]:
    return _claiming(Job.__table__.c.id == policy.head(bindparam("turn"), sized=sized))


@lru_cache
def claim_at_once(*, sized: bool) -> Select[Any]:
    """One statement for PostgreSQL: the project whose turn it is, its first job, its attempt, its event, and
    the project's row. One row with the job's columns, which are null if none was taken, and `outdated`; no
    row if no project is free. It needs `policy.turn_parameters`, `lease.taking` and `event_id`: no name of a
    column that it updates, for SQLAlchemy would set the column to it.

    All parts of a statement see the database as it was when the statement began, and the row that is locked
    may be younger: its jobs were changed meanwhile, by somebody whose changes are not seen. Every such change
    writes the project's row in its transaction. So the statement takes a job only if the row that it locked
    is the one that it sees; else it says `outdated`, and is to be asked again.
    """
    queues = ProjectQueue.__table__
    version: ColumnElement[str] = literal_column("project_queues.xmin::text")
    open_projects = policy.open_projects(sized=sized).add_columns(version.label("version"))
    turn = policy.first_that_is_free(open_projects).cte("turn")
    current = (
        select(queues.c.project_id)
        .join_from(turn, queues, and_(queues.c.project_id == turn.c.project_id, version == turn.c.version))
        .cte("current")
    )
    head = policy.head(select(current.c.project_id).scalar_subquery(), sized=sized)
    taken = _claiming(Job.__table__.c.id == head).cte("taken")
    taken_id = select(taken.c.id).scalar_subquery()
    lane = lanes.one_more(
        select(taken.c.project_id).scalar_subquery(),
        Job.__table__.c.id != taken_id,
        most=select(turn.c.most).scalar_subquery(),
    )
    return (
        select(taken, current.c.project_id.is_(None).label("outdated"))
        .select_from(turn.outerjoin(current, true()).outerjoin(taken, true()))
        .add_cte(*_attempt(taken), _event(taken), lane.cte("lane"))
    )


def _attempt(taken: CTE) -> tuple[CTE, CTE]:
    """What `attempts.begin` does."""
    attempts = JobAttempt.__table__
    begun = select(
        taken.c.id,
        taken.c.fencing_number,
        taken.c.lease_owner,
        taken.c.stage,
        bindparam("at", type_=Float(53)),
    )
    names = ["job_id", "fencing_number", "worker", "first_stage", "started_at"]
    written = insert(attempts).from_select(names, begun)  # type: ignore[arg-type]
    forgotten = delete(attempts).where(  # type: ignore[arg-type]
        attempts.c.job_id == taken.c.id,
        attempts.c.fencing_number <= taken.c.fencing_number - KEPT_ATTEMPTS,
    )
    return written.cte("attempt"), forgotten.cte("forgotten")


def _event(taken: CTE) -> CTE:
    message = case((taken.c.attempt_count == 1, STARTED), else_=literal(RESUMED) + taken.c.stage)
    data = func.jsonb_build_object("attempt", taken.c.attempt_count, "stage", taken.c.stage)
    row: dict[str, ColumnElement[Any]] = {
        "id": bindparam("event_id", type_=String),
        "job_id": taken.c.id,
        "created_at": bindparam("at", type_=Float(53)),
        "level": literal("info"),
        "type": literal("message"),
        "message": message,
        "data": data,
    }
    events = JobEvent.__table__
    return insert(events).from_select(list(row), select(*row.values())).cte("event")  # type: ignore[arg-type]
