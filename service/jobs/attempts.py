"""What became of each attempt at a job: a row with the claim, and its end in the transaction of the ending.

The fencing number names the attempt, and whoever writes here has just written the job's row under it, so a
worker that lost its lease ends no attempt. Rows are kept as long as their job, but not more than
KEPT_ATTEMPTS of one; a log is forgotten after LOG_KEPT_SECONDS.
"""

from __future__ import annotations

from enum import StrEnum

from sqlalchemy import bindparam, delete, insert, select, update
from sqlalchemy.orm import Session

from service.jobs.states import Stage
from service.models import JobAttempt

KEPT_ATTEMPTS = 50
"""A job whose workers are drained every few minutes must not fill the table."""
LOG_KEPT_SECONDS = 30 * 24 * 3600.0
_ROWS_PER_TIDYING = 500


class ExitReason(StrEnum):
    PUBLISHED = "published"
    FAILED = "failed"
    """It said why the job cannot succeed."""
    CANCELLED = "cancelled"
    PAUSED = "paused"
    DRAINED = "drained"
    """Its worker shut down."""
    DEADLINE = "deadline"
    OUT_OF_MEMORY = "out_of_memory"
    """Of the accelerator, also with half the tokens at once."""
    TOO_LARGE = "too_large"
    """It needs more memory than its worker declares; a larger one takes it."""
    STORAGE_DOWN = "storage_down"
    """The storage did not answer; it goes on when it does."""
    SCRATCH_FULL = "scratch_full"
    """The disk of its worker had no room left; it goes on elsewhere, or when there is room."""
    DIED = "died"
    """By a signal or an unexpected error: `exit_code` says which."""
    LOST_LEASE = "lost_lease"
    """Its worker stopped answering; what its process did then is not known."""


def begin(
    session: Session, job_id: str, fencing_number: int, *, worker: str, stage: Stage, now: float
) -> None:
    """With the claim."""
    connection = session.connection()
    if fencing_number > KEPT_ATTEMPTS:
        connection.execute(_FORGET, {"of": job_id, "upto": fencing_number - KEPT_ATTEMPTS})
    values = {"job_id": job_id, "fencing_number": fencing_number, "worker": worker}
    connection.execute(_INSERT, values | {"first_stage": stage.value, "started_at": now})


_attempts = JobAttempt.__table__
_INSERT = insert(_attempts)  # type: ignore[arg-type]
_FORGET = delete(_attempts).where(  # type: ignore[arg-type]
    _attempts.c.job_id == bindparam("of"), _attempts.c.fencing_number <= bindparam("upto")
)


def end(
    session: Session,
    job_id: str,
    fencing_number: int,
    *,
    reason: ExitReason,
    stage: Stage,
    now: float,
    exit_code: int | None = None,
    error_code: str | None = None,
    log_tail: str | None = None,
) -> None:
    """With the ending. Attempts that began before there were rows for them have none."""
    session.execute(
        update(JobAttempt)
        .where(
            JobAttempt.job_id == job_id,
            JobAttempt.fencing_number == fencing_number,
            JobAttempt.ended_at.is_(None),
        )
        .values(
            ended_at=now,
            last_stage=stage.value,
            exit_reason=reason.value,
            exit_code=exit_code,
            error_code=error_code,
            log_tail=log_tail or None,
            log_expires_at=now + LOG_KEPT_SECONDS if log_tail else None,
        )
    )


def list_attempts(session: Session, job_id: str) -> list[JobAttempt]:
    """Newest first. Whose job it is, the caller has asked."""
    query = select(JobAttempt).where(JobAttempt.job_id == job_id)
    return list(session.scalars(query.order_by(JobAttempt.fencing_number.desc())))


def forget_logs(session: Session, *, now: float) -> int:
    """How many logs were forgotten; not more at once than a short transaction takes."""
    due = (
        select(JobAttempt)
        .where(JobAttempt.log_expires_at <= now)
        .order_by(JobAttempt.log_expires_at)
        .limit(_ROWS_PER_TIDYING)
        .with_for_update(skip_locked=True)
    )
    attempts = list(session.scalars(due))
    for attempt in attempts:
        attempt.log_tail = attempt.log_expires_at = None
    session.flush()
    return len(attempts)
