"""Where a job stands in the queue, and how long the rest should take. Measured, or unknown: never guessed."""

from __future__ import annotations

from statistics import median
from typing import Any

from sqlalchemy import and_, func, or_, select
from sqlalchemy.orm import Session

from service.jobs.states import STAGES, Stage, Status
from service.models import Job, ProjectQueue

COUNTED_POSITIONS = 1000
"""Nobody needs to know how far back the rest is, and counting it would cost more the longer the queue."""
COMPARED_JOBS = 5


def queue_position(session: Session, job: Job) -> int | None:
    """1 is next: the place at which the job would start if none came and none ended, by the rule that workers
    choose by (`service.scheduling.policy`), limits and the sizes of workers left out. None for a job that
    does not wait, or far back."""
    if job.status != Status.QUEUED or job.queued_at is None:
        return None
    before = or_(Job.queued_at < job.queued_at, and_(Job.queued_at == job.queued_at, Job.id < job.id))
    ahead = select(Job.id).where(Job.project_id == job.project_id, _WAITING, before)
    count = session.scalar(select(func.count()).select_from(ahead.limit(COUNTED_POSITIONS).subquery())) or 0
    return _Queues(session, job.project_id).position(count)


def queue_positions(session: Session, project_id: str) -> dict[str, int]:
    """Of a project's jobs among the first of the queue, by id."""
    query = select(Job.id).where(Job.project_id == project_id, _WAITING)
    job_ids = session.scalars(query.order_by(Job.queued_at, Job.id).limit(COUNTED_POSITIONS))
    queues = _Queues(session, project_id)
    places = {job_id: queues.position(number) for number, job_id in enumerate(job_ids)}
    return {job_id: place for job_id, place in places.items() if place is not None}


class _Queues:
    """How many jobs of other projects go before the nth of this one. Each project's jobs start at levels: how
    many of the project run already then. Within a priority lower levels go first, whatever the project."""

    def __init__(self, session: Session, project_id: str) -> None:
        mine = session.get(ProjectQueue, project_id)
        self._level = 0 if mine is None else mine.num_running
        self._others: list[Any] = []
        if mine is None or mine.head_queued_at is None:
            return
        other = ProjectQueue
        wins_ties = or_(
            other.recent < mine.recent,
            and_(
                other.recent == mine.recent,
                or_(
                    other.head_queued_at < mine.head_queued_at,
                    and_(other.head_queued_at == mine.head_queued_at, other.project_id < project_id),
                ),
            ),
        )
        columns = (other.rank - mine.rank, other.num_running, other.num_waiting, wins_ties)
        query = (
            select(*columns, func.count())
            .where(other.head_queued_at.is_not(None), other.project_id != project_id, other.rank <= mine.rank)
            .group_by(other.rank, other.num_running, other.num_waiting, wins_ties)
        )
        self._others = list(session.execute(query))

    def position(self, num_before: int) -> int | None:
        """Of the job with so many of its own project before it."""
        ahead = num_before
        for rank, num_running, num_waiting, wins_ties, num_projects in self._others:
            sooner = self._level + num_before - num_running + (1 if wins_ties else 0)
            ahead += num_projects * (num_waiting if rank < 0 else max(0, min(num_waiting, sooner)))
        return ahead + 1 if ahead < COUNTED_POSITIONS else None


def later_stages_seconds(session: Session, job_id: str) -> float | None:
    """How long the stages after the job's current one take together: the median of the newest jobs that
    succeeded on the same base. None if there are none yet; 0 for the last stage."""
    columns = (Job.base_id, Job.base_sha256, Job.stage, Job.starts_from)
    job = session.execute(select(*columns).where(Job.id == job_id)).one()
    later = STAGES[STAGES.index(Stage(job.stage)) + 1 :]
    if job.starts_from is not None:
        later = tuple(stage for stage in later if stage is not Stage.TRAIN)  # it copies what was trained
    if not later:
        return 0.0
    query = (
        select(Job.stage_seconds)
        .where(
            Job.base_id == job.base_id,
            Job.status == Status.SUCCEEDED.value,
            Job.base_sha256 == job.base_sha256,
            Job.stage_seconds.is_not(None),
            Job.starts_from.is_(None),
        )
        .order_by(Job.finished_at.desc())
        .limit(COMPARED_JOBS)
    )
    sums = [
        sum(seconds[stage.value] for stage in later)
        for seconds in session.scalars(query)
        if seconds is not None and all(stage.value in seconds for stage in later)
    ]
    return median(sums) if sums else None


_WAITING = and_(Job.status == Status.QUEUED.value, Job.queued_at.is_not(None))
