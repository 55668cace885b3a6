"""Which job a worker gets next (docs/decisions/0022).

Of the projects with a job that this worker can run, and that run fewer than they may: the one with the
highest priority; among those the one with the fewest running jobs, then with the least running time lately,
then whose first job waits longest. Of that project, the job that waits longest.

Statements are built once: a fleet asks hundreds of times a second, and building one takes longer than running
it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from sqlalchemy import (
    ColumnClause,
    ColumnElement,
    Integer,
    ScalarSelect,
    Select,
    and_,
    bindparam,
    exists,
    func,
    literal_column,
    or_,
    select,
)
from sqlalchemy.orm import Session

from service.models import Job, ProjectQueue, ProjectQuota
from service.quotas.limits import Quota
from service.scheduling.lanes import QUEUED
from service.scheduling.workers import Kind

MOST_PROJECTS_TRIED = 8
# A literal: of a limit that is a parameter PostgreSQL assumes the worst, and plans every statement anew.
ONE: ColumnClause[int] = literal_column("1", Integer)
_jobs, _queues, _quotas = Job.__table__.c, ProjectQueue.__table__.c, ProjectQuota.__table__.c


class Turn(NamedTuple):
    """The project whose job is next, and how many of its jobs may run at once (0: any number)."""

    project_id: str
    limit: int


def next_project(
    session: Session, kind: Kind, *, default: Quota, max_attempts: int, tried: Sequence[str], waits: bool
) -> Turn | None:
    """The project, whose row is locked until the transaction ends; None if there is none for this kind of
    worker besides those `tried`.

    Workers that ask at the same moment do not wait for each other: a project that one of them is being given
    a job of is passed over by the others, unless the caller `waits`, because nothing else is left. Then the
    row is not locked yet: `wait_for` does that.
    """
    sized, again = kind.memory_bytes > 0, bool(tried)
    query = _unlocked(sized=sized, again=again) if waits else _locked(sized=sized, again=again)
    values = turn_parameters(kind, default=default, max_attempts=max_attempts)
    if tried:
        values["tried"] = list(tried)
    row = session.connection().execute(query, values).first()
    return None if row is None else Turn(*row)


def wait_for(session: Session, kind: Kind, turn: Turn, *, default: Quota, max_attempts: int) -> bool:
    """Lock the project's row when the others are done with it; whether it may still be given a job.

    Also a row of which that is not so is locked afterwards. Who waits here must hold no other project's row:
    two claims that wait for each other's would be a deadlock.
    """
    values = turn_parameters(kind, default=default, max_attempts=max_attempts) | {"only": turn.project_id}
    query = _awaited(sized=kind.memory_bytes > 0)
    return session.connection().execute(query, values).first() is not None


def head(project_id: ColumnElement[str], *, sized: bool) -> ScalarSelect[str]:
    """The job of this project that is next, locked; with `parameters`. One whose row is locked is
    passed over: its owner may be cancelling it, and waiting for that with the project's row in hand could
    deadlock."""
    return (
        select(_jobs.id)
        .where(_jobs.project_id == project_id, _runnable(sized=sized))
        .order_by(_jobs.queued_at, _jobs.id)
        .limit(ONE)
        .with_for_update(skip_locked=True)
        .scalar_subquery()
    )


def turn_parameters(kind: Kind, *, default: Quota, max_attempts: int) -> dict[str, Any]:
    """Of `open_projects`."""
    more = {"class_asking": kind.worker_class, "default_limit": default.concurrent_jobs}
    return parameters(kind, max_attempts) | more


def parameters(kind: Kind, max_attempts: int) -> dict[str, Any]:
    values = {"max_attempts": max_attempts}
    return values | {"memory_bytes": kind.memory_bytes} if kind.memory_bytes else values


def open_projects(*, sized: bool) -> Select[Any]:
    """Projects that may be given a job, and their limits, in the order of their turns."""
    limit = func.coalesce(_quotas.concurrent_jobs, bindparam("default_limit", type_=Integer))
    return (
        select(_queues.project_id, limit.label("most"))
        .select_from(
            ProjectQueue.__table__.outerjoin(ProjectQuota.__table__, _quotas.project_id == _queues.project_id)
        )
        .where(
            _queues.head_queued_at.is_not(None),
            or_(_queues.worker_class.is_(None), _queues.worker_class == bindparam("class_asking")),
            or_(limit == 0, _queues.num_running < limit),
            exists().where(_jobs.project_id == _queues.project_id, _runnable(sized=sized)),
        )
        .order_by(
            _queues.rank, _queues.num_running, _queues.recent, _queues.head_queued_at, _queues.project_id
        )
    )


def first_that_is_free(query: Select[Any]) -> Select[Any]:
    """Of `open_projects`: locked. Those that are locked already are passed over."""
    return query.limit(ONE).with_for_update(of=ProjectQueue.__table__, skip_locked=True)


@lru_cache
def _locked(*, sized: bool, again: bool) -> Select[Any]:
    return first_that_is_free(_besides_those_tried(open_projects(sized=sized), again=again))


@lru_cache
def _unlocked(*, sized: bool, again: bool) -> Select[Any]:
    return _besides_those_tried(open_projects(sized=sized), again=again).limit(ONE)


@lru_cache
def _awaited(*, sized: bool) -> Select[Any]:
    of_one = open_projects(sized=sized).where(_queues.project_id == bindparam("only"))
    return of_one.with_for_update(of=ProjectQueue.__table__)


def _besides_those_tried(query: Select[Any], *, again: bool) -> Select[Any]:
    return query.where(_queues.project_id.not_in(bindparam("tried", expanding=True))) if again else query


def _runnable(*, sized: bool) -> ColumnElement[bool]:
    conditions: list[ColumnElement[bool]] = [
        _jobs.status == QUEUED,
        _jobs.cancel_requested_at.is_(None),
        _jobs.attempt_count < bindparam("max_attempts"),
    ]
    if sized:
        fits = _jobs.needed_memory_bytes <= bindparam("memory_bytes")
        conditions.append(or_(_jobs.needed_memory_bytes.is_(None), fits))
    return and_(*conditions)
