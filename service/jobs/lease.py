"""Who may work on a job: claims, leases and fencing numbers.

Which job a worker gets is chosen by `service.scheduling.policy`. A claim is one UPDATE, so of any number of
workers that want a job exactly one gets it, and it bumps the fencing number. Every later write of that worker
carries the number; once another claim bumped it, the old worker's writes touch no row (LeaseLostError).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, Row, and_, select, update
from sqlalchemy.orm import Session
from sqlalchemy.sql.dml import ReturningUpdate

from service import outbox
from service.jobs import attempts
from service.jobs.claiming import RESUMED, STARTED, TAKE_ONE, take_head
from service.jobs.events import add_event
from service.jobs.states import Stage, Status, next_stage
from service.jobs.transitions import LeaseLostError, fail, move
from service.models import Job
from service.quotas.limits import Quota, quota_of
from service.scheduling import lanes, policy
from service.scheduling.workers import Kind


class StopRequest(StrEnum):
    """What the owner of a running job asked for. A cancel outranks a pause."""

    CANCEL = "cancel"
    PAUSE = "pause"


@dataclass(frozen=True)
class Claim:
    job_id: str
    owner: str
    fencing_number: int
    stage: Stage
    attempt: int
    request_id: str | None = None
    """Of the request that created the job."""
    traceparent: str | None = None
    """Where the job's trace begins."""


def claim_next(
    session: Session,
    *,
    owner: str,
    ttl_seconds: float,
    max_attempts: int,
    now: float,
    kind: Kind | None = None,
    default_quota: Quota | None = None,
) -> Claim | None:
    """Take the job whose turn it is; None if there is none for this kind of worker."""
    kind, default = kind or Kind(), default_quota or Quota()
    values = policy.parameters(kind, max_attempts) | taking(owner=owner, ttl_seconds=ttl_seconds, now=now)
    # On SQLite there is nobody to wait for.
    may_wait = session.get_bind().dialect.name == "postgresql"
    tried: list[str] = []
    waits = False
    while len(tried) < policy.MOST_PROJECTS_TRIED:
        with session.begin_nested() as trial:
            turn = policy.next_project(
                session, kind, default=default, max_attempts=max_attempts, tried=tried, waits=waits
            )
            if turn is not None and (
                not waits or policy.wait_for(session, kind, turn, default=default, max_attempts=max_attempts)
            ):
                head = values | {"turn": turn.project_id}
                taken = _take(session, take_head(sized=kind.memory_bytes > 0), head, now=now)
                if taken is not None:
                    lanes.one_more_runs(session, turn.project_id, running_limit=turn.limit)
                    return taken
            trial.rollback()  # its locks, too: nobody may wait for a row while holding one
        if turn is not None:
            tried.append(turn.project_id)
        elif waits or not may_wait:
            return None
        else:
            waits = True  # for the projects that were passed over
    return None


def claim(
    session: Session,
    job_id: str,
    *,
    owner: str,
    ttl_seconds: float,
    max_attempts: int,
    now: float,
    default_quota: Quota | None = None,
) -> Claim | None:
    """Take this job if it is queued, whoever's turn it is. None: somebody else has it, it ended, or a cancel
    came first."""
    session.flush()
    values = taking(owner=owner, ttl_seconds=ttl_seconds, now=now)
    taken = _take(session, TAKE_ONE, values | {"job_id": job_id, "max_attempts": max_attempts}, now=now)
    if taken is not None:
        project_id = session.scalars(select(Job.project_id).where(Job.id == job_id)).one()
        queue = lanes.locked(session, project_id)
        queue.running_limit = quota_of(session, project_id, default_quota or Quota()).concurrent_jobs
        lanes.count(session, project_id, recent=queue.recent)
    return taken


def taking(*, owner: str, ttl_seconds: float, now: float) -> dict[str, Any]:
    """Parameters of a claiming statement."""
    return {"owner": owner, "until": now + ttl_seconds, "at": now}


def _take(
    session: Session, statement: ReturningUpdate[Any], values: dict[str, Any], *, now: float
) -> Claim | None:
    row = session.connection().execute(statement, values).first()
    if row is None:
        return None
    claim = claim_of(row)
    attempts.begin(
        session, claim.job_id, claim.fencing_number, worker=claim.owner, stage=claim.stage, now=now
    )
    first = claim.attempt == 1
    text = STARTED if first else f"{RESUMED}{claim.stage.value}"
    add_event(
        session, claim.job_id, text, now=now, data={"attempt": claim.attempt, "stage": claim.stage.value}
    )
    return claim


def claim_of(row: Row[Any]) -> Claim:
    """Of what a claiming statement returns."""
    return Claim(
        row.id,
        row.lease_owner,
        row.fencing_number,
        Stage(row.stage),
        row.attempt_count,
        row.request_id,
        row.traceparent,
    )


def write(session: Session, claim: Claim, **values: Any) -> None:
    """Change columns of a job one owns. Raises LeaseLostError if one does not any more."""
    row = session.execute(update(Job).where(_owned(claim)).values(**values).returning(Job.id)).first()
    if row is None:
        raise _lost(claim)


def _owned(claim: Claim) -> ColumnElement[bool]:
    return and_(
        Job.id == claim.job_id,
        Job.fencing_number == claim.fencing_number,
        Job.status == Status.RUNNING.value,
    )


def _lost(claim: Claim) -> LeaseLostError:
    return LeaseLostError(f"{claim.job_id}: fencing number {claim.fencing_number} is no longer current")


def heartbeat(session: Session, claim: Claim, *, ttl_seconds: float, now: float) -> StopRequest | None:
    """Extend the lease; what the job's owner asked for meanwhile. Raises LeaseLostError."""
    write(session, claim, lease_expires_at=now + ttl_seconds, heartbeat_at=now)
    return asked(session, claim)


def asked(session: Session, claim: Claim) -> StopRequest | None:
    """What the job's owner asked for. Raises LeaseLostError."""
    query = select(Job.cancel_requested_at, Job.pause_requested_at).where(_owned(claim))
    row = session.execute(query).first()
    if row is None:
        raise _lost(claim)
    cancel, pause = row
    if cancel is not None:
        return StopRequest.CANCEL
    return StopRequest.PAUSE if pause is not None else None


def finish_stage(
    session: Session, claim: Claim, stage: Stage, *, output: dict[str, Any], now: float, **values: Any
) -> None:
    """Record the stage's completion marker and move on to the next stage. Not for `publish`, whose
    end is the release itself (`service.adapters`)."""
    following = next_stage(stage)
    assert following is not None, "publish ends with the release of the adapter"
    query = select(Job.stage_outputs, Job.stage_seconds, Job.stage_began_at).where(Job.id == claim.job_id)
    outputs, seconds, began_at = session.execute(query).one()
    if began_at is not None:
        values["stage_seconds"] = {**(seconds or {}), stage.value: now - began_at}
    move(
        session,
        claim.job_id,
        (Status.RUNNING, following),
        message=f"Stage {stage.value} finished, {following.value} started",
        data={"stage": following.value},
        now=now,
        fencing_number=claim.fencing_number,
        values={
            "stage_outputs": {**outputs, stage.value: output},
            "progress": None,
            "stage_began_at": now,
            **values,
        },
    )


def hand_back(
    session: Session, claim: Claim, *, reason: str, now: float, count_attempt: bool = True, **values: Any
) -> None:
    """Return a job to the queue with what was finished so far, and ring for another worker; or, if a
    pause was asked for, keep it paused. The caller has locked the job's row."""
    query = select(Job.stage, Job.pause_requested_at).where(Job.id == claim.job_id)
    stage_name, pause_requested_at = session.execute(query).one()
    stage = Stage(stage_name)
    if not count_attempt:
        values["attempt_count"] = claim.attempt - 1
    if pause_requested_at is not None:
        move(
            session,
            claim.job_id,
            (Status.PAUSED, stage),
            message="The job was paused",
            now=now,
            fencing_number=claim.fencing_number,
            values=values,
        )
        return
    move(
        session,
        claim.job_id,
        (Status.QUEUED, stage),
        message=f"Back in the queue: {reason}",
        level="warn",
        now=now,
        fencing_number=claim.fencing_number,
        values=values,
    )
    outbox.enqueue(session, claim.job_id, now=now)


def expired(session: Session, *, now: float, limit: int = 100) -> list[Job]:
    query = (
        select(Job)
        .where(Job.status == Status.RUNNING.value, Job.lease_expires_at < now)
        .order_by(Job.lease_expires_at)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    # In the order of their projects: ending a job locks its project's row (`service.scheduling.lanes`).
    return sorted(session.scalars(query), key=lambda job: job.project_id)


def reap(session: Session, job: Job, *, max_attempts: int, now: float) -> None:
    """End the lease of a silent worker: cancelled if that was asked for, paused or back to the queue
    while attempts are left, else failed with `worker_lost`."""
    stage = Stage(job.stage)
    reason = attempts.ExitReason.LOST_LEASE
    attempts.end(session, job.id, job.fencing_number, reason=reason, stage=stage, now=now)
    if job.cancel_requested_at is not None:
        move(
            session,
            job.id,
            (Status.CANCELLED, stage),
            message="The job was cancelled; its worker was lost",
            now=now,
            fencing_number=job.fencing_number,
            only_from=Status.RUNNING,
        )
    elif job.attempt_count >= max_attempts:
        fail(
            session,
            job.id,
            stage,
            code="worker_lost",
            message=f"its worker disappeared {job.attempt_count} times, last in stage {stage.value}",
            param=None,
            now=now,
            fencing_number=job.fencing_number,
        )
    else:
        lost = Claim(job.id, job.lease_owner or "", job.fencing_number, stage, job.attempt_count)
        hand_back(session, lost, reason="its worker stopped answering", now=now)
