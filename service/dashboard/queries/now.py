"""What happens now, over all projects: the queue, the workers, what is stuck."""

from __future__ import annotations

import time
from dataclasses import dataclass

from sqlalchemy.orm import Session

from service.dashboard.queries.names import ProjectName, names_of_projects
from service.db import Database
from service.fleet import repository as fleet
from service.fleet.states import WorkerState
from service.jobs.states import STAGES, TERMINAL, Status


@dataclass(frozen=True)
class WorkerRow:
    worker: fleet.WorkerView
    project: ProjectName | None
    heartbeat_at: float
    is_silent: bool


@dataclass(frozen=True)
class StuckRow:
    job: fleet.StuckJob
    project: ProjectName | None
    heartbeat_at: float | None
    moved_at: float | None


@dataclass(frozen=True)
class Now:
    """Moments and no ages: what has not changed looks the same a second later."""

    by_status: dict[str, dict[str, int]]
    """By stage: jobs that have not ended."""
    ended: dict[str, int]
    num_queued: int
    num_held: int
    oldest_queued_at: float | None
    workers: list[WorkerRow]
    stuck: list[StuckRow]

    @property
    def total(self) -> int:
        return sum(sum(stages.values()) for stages in self.by_status.values()) + sum(self.ended.values())

    @property
    def num_busy(self) -> int:
        return sum(row.worker.state is WorkerState.BUSY and not row.is_silent for row in self.workers)

    @property
    def num_there(self) -> int:
        return sum(not row.is_silent for row in self.workers)

    def of(self, status: str) -> int:
        return sum(self.by_status.get(status, {}).values())


LIVE = tuple(status.value for status in Status if status not in TERMINAL)
STAGE_NAMES = tuple(stage.value for stage in STAGES)


def look(database: Database) -> Now:
    with database.snapshot() as session:
        return read(session, now=time.time())


def read(session: Session, *, now: float) -> Now:
    by_status: dict[str, dict[str, int]] = {status: {} for status in LIVE}
    ended = {status.value: 0 for status in TERMINAL}
    for count in fleet.job_counts(session):
        if count.status in ended:
            ended[count.status] += count.number
        else:
            by_status[count.status][count.stage] = count.number
    queue = fleet.queue(session, now=now)
    workers, stuck = fleet.workers(session, now=now), fleet.stuck_jobs(session, now=now)
    ids = {job.project_id for job in stuck} | {w.project_id for w in workers if w.project_id is not None}
    names = names_of_projects(session, ids)
    return Now(
        by_status=by_status,
        ended=ended,
        num_queued=queue.num_queued,
        num_held=queue.num_held,
        oldest_queued_at=_moment(now, queue.oldest_age_seconds),
        workers=[
            WorkerRow(
                worker,
                names.get(worker.project_id or ""),
                round(now - worker.heartbeat_age_seconds, 1),
                worker.heartbeat_age_seconds > fleet.STUCK_HEARTBEAT_SECONDS,
            )
            for worker in workers
        ],
        stuck=[
            StuckRow(
                job,
                names.get(job.project_id),
                _moment(now, job.heartbeat_age_seconds),
                _moment(now, job.progress_age_seconds),
            )
            for job in stuck
        ],
    )


def _moment(now: float, age_seconds: float | None) -> float | None:
    """The same in every look at the same row: ages are differences, and differences are rounded."""
    return None if age_seconds is None else round(now - age_seconds, 1)
