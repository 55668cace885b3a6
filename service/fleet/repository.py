"""What operators look at: workers, the queue, jobs that do not move. One query each, over all tenants.

Nothing here may be shown to a tenant. Ages are in seconds at `now` (seconds since the epoch), never negative:
clocks of machines differ a little.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import and_, case, func, not_, or_, select
from sqlalchemy.orm import Session

from service.fleet.states import WorkerState
from service.jobs.states import Status
from service.models import Job, OutboxMessage, ProjectQueue, Worker

STUCK_HEARTBEAT_SECONDS = 120.0
STUCK_PROGRESS_SECONDS = 1800.0
MAX_ROWS = 500
"""Of workers and of stuck jobs: more is a list that nobody reads."""


@dataclass(frozen=True)
class WorkerView:
    """A worker that did not stop by itself, and the job it says it works on."""

    id: str
    host: str
    pid: int
    state: WorkerState
    started_at: float
    heartbeat_age_seconds: float
    device_kind: str
    device_name: str
    memory_used_bytes: int | None
    memory_total_bytes: int | None
    job_id: str | None
    project_id: str | None
    stage: str | None
    step: int | None
    total_steps: int | None
    tokens_per_second: float | None


@dataclass(frozen=True)
class StuckJob:
    """A job that is `running`, but whose worker is silent or whose steps have stopped."""

    job_id: str
    project_id: str
    stage: str
    attempt: int
    lease_owner: str | None
    heartbeat_age_seconds: float | None
    progress_age_seconds: float | None
    """Since the last step, or since the stage began. Null for jobs claimed by an older version."""
    is_silent: bool
    is_motionless: bool


@dataclass(frozen=True)
class QueueView:
    """`num_held` of the `num_queued` wait for another job of their project; those have no age here, because
    no worker could take them."""

    num_queued: int
    num_held: int
    oldest_age_seconds: float | None


@dataclass(frozen=True)
class OutboxView:
    num_pending: int
    oldest_age_seconds: float | None


@dataclass(frozen=True)
class JobCount:
    status: str
    stage: str
    number: int


def workers(session: Session, *, now: float) -> list[WorkerView]:
    """By host and process. Those that were killed are among them, with an old heartbeat."""
    query = (
        select(Worker, Job.project_id, Job.stage, Job.progress)
        .outerjoin(Job, and_(Job.id == Worker.job_id, Job.lease_owner == Worker.id))
        .where(Worker.state != WorkerState.GONE.value)
        .order_by(Worker.host, Worker.pid, Worker.started_at)
        .limit(MAX_ROWS)
    )
    views = []
    for worker, project_id, stage, progress_or_none in session.execute(query):
        progress = progress_or_none or {}
        views.append(
            WorkerView(
                id=worker.id,
                host=worker.host,
                pid=worker.pid,
                state=WorkerState(worker.state),
                started_at=worker.started_at,
                heartbeat_age_seconds=max(0.0, now - worker.heartbeat_at),
                device_kind=worker.device_kind,
                device_name=worker.device_name,
                memory_used_bytes=worker.memory_used_bytes,
                memory_total_bytes=worker.memory_total_bytes,
                job_id=worker.job_id,
                project_id=project_id,
                stage=stage,
                step=progress.get("step"),
                total_steps=progress.get("total_steps"),
                tokens_per_second=progress.get("tokens_per_second"),
            )
        )
    return views


def stuck_jobs(
    session: Session,
    *,
    now: float,
    heartbeat_seconds: float = STUCK_HEARTBEAT_SECONDS,
    progress_seconds: float = STUCK_PROGRESS_SECONDS,
) -> list[StuckJob]:
    """The longest silent first. `heartbeat_seconds` and `progress_seconds` are how old each may become."""
    # The later of the two: `progress_at` is of the stage before until this one made a step.
    moved_at = case(
        (Job.progress_at > func.coalesce(Job.stage_began_at, 0.0), Job.progress_at), else_=Job.stage_began_at
    )
    query = (
        select(
            Job.id,
            Job.project_id,
            Job.stage,
            Job.attempt_count,
            Job.lease_owner,
            Job.heartbeat_at,
            moved_at.label("moved_at"),
        )
        .where(
            Job.status == Status.RUNNING.value,
            or_(Job.heartbeat_at < now - heartbeat_seconds, moved_at < now - progress_seconds),
        )
        .order_by(Job.heartbeat_at, Job.id)
        .limit(MAX_ROWS)
    )
    stuck = []
    for row in session.execute(query):
        heartbeat_age = None if row.heartbeat_at is None else max(0.0, now - row.heartbeat_at)
        progress_age = None if row.moved_at is None else max(0.0, now - row.moved_at)
        stuck.append(
            StuckJob(
                job_id=row.id,
                project_id=row.project_id,
                stage=row.stage,
                attempt=row.attempt_count,
                lease_owner=row.lease_owner,
                heartbeat_age_seconds=heartbeat_age,
                progress_age_seconds=progress_age,
                is_silent=heartbeat_age is not None and heartbeat_age > heartbeat_seconds,
                is_motionless=progress_age is not None and progress_age > progress_seconds,
            )
        )
    return stuck


def queue(session: Session, *, now: float) -> QueueView:
    """Held are the jobs of projects that run as many as they may."""
    limit = func.coalesce(ProjectQueue.running_limit, 0)
    held = case((and_(limit > 0, ProjectQueue.num_running >= limit), True), else_=False)
    query = (
        select(func.count(), func.count().filter(held), func.min(Job.queued_at).filter(not_(held)))
        .select_from(Job)
        .outerjoin(ProjectQueue, ProjectQueue.project_id == Job.project_id)
        .where(Job.status == Status.QUEUED.value)
    )
    num_queued, num_held, oldest = session.execute(query).one()
    return QueueView(num_queued, num_held, None if oldest is None else max(0.0, now - oldest))


def unsent(session: Session, *, now: float) -> OutboxView:
    query = select(func.count(), func.min(OutboxMessage.created_at)).where(OutboxMessage.sent_at.is_(None))
    number, oldest = session.execute(query).one()
    return OutboxView(number, None if oldest is None else max(0.0, now - oldest))


def job_counts(session: Session) -> list[JobCount]:
    """By status and stage, for every pair that occurs; `paused` is a status here. Reads an index alone."""
    query = select(Job.status, Job.stage, func.count()).group_by(Job.status, Job.stage)
    rows = session.execute(query.order_by(Job.status, Job.stage))
    return [JobCount(status, stage, number) for status, stage, number in rows]
