"""The UPDATE that is a claim, built once: of one job, or of the one whose turn it is."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from sqlalchemy import ColumnElement, bindparam, func, update
from sqlalchemy.sql.dml import ReturningUpdate

from service.jobs.states import Status
from service.models import Job
from service.scheduling import lanes, policy


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
        )
    )


TAKE_ONE = _claiming(Job.__table__.c.id == bindparam("job_id"))


@lru_cache
def take_head(*, sized: bool) -> ReturningUpdate[Any]:
    return _claiming(Job.__table__.c.id == policy.head(sized=sized))
