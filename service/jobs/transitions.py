"""The one function that changes a job's state.

The change is guarded in the WHERE clause, not in Python: the row must still be in a state from
which the table allows the move and, for a worker, still carry its fencing number.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import and_, or_, select, update
from sqlalchemy.orm import Session

from service.jobs.events import Level, add_event
from service.jobs.states import TERMINAL, TRANSITIONS, Stage, State, Status
from service.models import Job
from service.quotas import accounts
from service.safety import figures
from service.scheduling import lanes
from service.webhooks.announcements import announce


class IllegalTransitionError(RuntimeError):
    """The job is not (or no longer) in a state that allows this move."""


class LeaseLostError(RuntimeError):
    """Another worker owns the job now, or it was ended: this worker must stop and write nothing."""


def sources(target: State) -> list[State]:
    return [state for state, targets in TRANSITIONS.items() if target in targets]


def move(
    session: Session,
    job_id: str,
    target: State,
    *,
    message: str,
    now: float,
    level: Level = "info",
    data: dict[str, Any] | None = None,
    fencing_number: int | None = None,
    only_from: Status | None = None,
    values: dict[str, Any] | None = None,
) -> None:
    """Move one job to `target` and write the event.

    A move out of `running` gives up the lease and its estimate; every move from there books the time that the
    stage took. The project's queue is counted anew (`service.scheduling.lanes`). A move into the queue
    takes a place at its end, one into `paused` grants what was asked for, and one into a terminal status sets
    `finished_at` and writes what the project's webhooks are told.
    Raises LeaseLostError if `fencing_number` is given and no longer current, IllegalTransitionError
    if no edge leads from the job's state (restricted to status `only_from`) to `target`.
    """
    status, stage = target
    before = session.execute(
        select(Job.project_id, Job.status, Job.stage_began_at, Job.lease_expires_at)
        .where(Job.id == job_id)
        .with_for_update()
    ).first()
    allowed = [state for state in sources(target) if only_from in (None, state[0])]
    assert allowed, f"no edge of the transition table leads to {target}"
    guard = [
        Job.id == job_id,
        or_(*(and_(Job.status == source, Job.stage == at) for source, at in allowed)),
    ]
    if fencing_number is not None:
        guard.append(Job.fencing_number == fencing_number)
    changes: dict[str, Any] = {"status": status.value, "stage": stage.value, **(values or {})}
    if status is not Status.RUNNING:
        changes |= {
            "lease_owner": None,
            "lease_expires_at": None,
            "estimated_finish_at": None,
        }
    if status is Status.QUEUED:
        changes["queued_at"] = now
    if status is Status.PAUSED:
        changes["pause_requested_at"] = None
    if status in TERMINAL:
        changes |= {"finished_at": now, "pause_requested_at": None}
    moved = session.execute(update(Job).where(*guard).values(**changes).returning(Job.project_id)).first()
    if moved is None:
        if fencing_number is not None:
            raise LeaseLostError(f"{job_id}: fencing number {fencing_number} is no longer current")
        raise IllegalTransitionError(f"{job_id} cannot become {status.value} at {stage.value} now")
    add_event(session, job_id, message, now=now, level=level, data=data)
    figures.record(session, job_id, changes.get("safety_report"), now=now)
    if status in TERMINAL:
        event = f"fine_tuning.job.{status.value}"
        announce(session, project_id=moved.project_id, job_id=job_id, type=event, now=now)
    assert before is not None, job_id
    seconds = 0.0
    if before.status == Status.RUNNING and before.stage_began_at is not None:
        # A lost worker's time ends with its lease, whenever that was noticed.
        until = now if before.lease_expires_at is None else min(now, before.lease_expires_at)
        seconds = until - before.stage_began_at
        accounts.book(session, before.project_id, seconds, now=now)
    if before.status != status or seconds > 0:
        lanes.refresh(session, before.project_id, now=now, used_seconds=seconds)


def fail(
    session: Session,
    job_id: str,
    stage: Stage,
    *,
    code: str,
    message: str,
    param: str | None,
    now: float,
    fencing_number: int | None = None,
    only_from: Status | None = None,
    values: dict[str, Any] | None = None,
) -> None:
    move(
        session,
        job_id,
        (Status.FAILED, stage),
        message=f"The job failed: {message}",
        level="error",
        data={"code": code},
        now=now,
        fencing_number=fencing_number,
        only_from=only_from,
        values={"error_code": code, "error_message": message, "error_param": param, **(values or {})},
    )
