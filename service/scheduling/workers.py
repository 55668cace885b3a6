"""The kinds of workers: what they declare, which are known, and which queue of the broker wakes them.

Workers of one class and memory are one kind and hear one doorbell; a job's bell rings for every kind that
could run it. A kind is known while one of its workers said so within `KNOWN_SECONDS`.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from service.jobs.states import Status
from service.models import Job, KnownWorker, ProjectQueue
from service.settings import Settings

KNOWN_SECONDS = 600.0
ANNOUNCE_SECONDS = 60.0
DEFAULT_CLASS = "default"
DEFAULT_QUEUE = "autoclave"


@dataclass(frozen=True)
class Kind:
    """`memory_bytes` of the device; 0 is not declared: such a worker takes jobs of any size."""

    worker_class: str = DEFAULT_CLASS
    memory_bytes: int = 0

    @property
    def queue_name(self) -> str:
        """Of the broker."""
        if self == Kind():
            return DEFAULT_QUEUE
        return f"{DEFAULT_QUEUE}.{self.worker_class}.{self.memory_bytes}"

    def can_run(self, *, worker_class: str | None, needed_memory_bytes: int | None) -> bool:
        """A job of a project bound to `worker_class` (None: any) that needs so much (None: unknown)."""
        fits = not self.memory_bytes or (needed_memory_bytes or 0) <= self.memory_bytes
        return fits and worker_class in (None, self.worker_class)


def kind_from_settings(settings: Settings) -> Kind:
    return Kind(settings.worker_class, settings.worker_memory_bytes)


def announce(session: Session, kind: Kind, *, now: float) -> None:
    """A worker of this kind is there."""
    insert = postgresql.insert if session.get_bind().dialect.name == "postgresql" else sqlite.insert
    statement = insert(KnownWorker).values(
        worker_class=kind.worker_class, memory_bytes=kind.memory_bytes, seen_at=now
    )
    session.execute(
        statement.on_conflict_do_update(
            index_elements=["worker_class", "memory_bytes"],
            set_={"seen_at": now},
            # A thousand workers of a kind need not all write the same row every minute.
            where=KnownWorker.seen_at < now - ANNOUNCE_SECONDS / 2,
        )
    )


def known(session: Session, *, now: float) -> list[Kind]:
    query = select(KnownWorker.worker_class, KnownWorker.memory_bytes).where(
        KnownWorker.seen_at > now - KNOWN_SECONDS
    )
    return sorted((Kind(*row) for row in session.execute(query)), key=lambda kind: kind.queue_name)


def bell_queues(session: Session, job_id: str, *, now: float) -> list[str]:
    """Where to ring for this job; nowhere if no known worker could run it. Where no worker is known, in the
    default queue: somebody may come."""
    kinds = known(session, now=now)
    if not kinds:
        return [DEFAULT_QUEUE]
    if kinds == [Kind()]:
        return [DEFAULT_QUEUE]
    query = (
        select(Job.status, Job.needed_memory_bytes, ProjectQueue.worker_class)
        .outerjoin(ProjectQueue, ProjectQueue.project_id == Job.project_id)
        .where(Job.id == job_id)
    )
    row = session.execute(query).first()
    if row is None or row.status != Status.QUEUED.value:
        return []
    return [
        kind.queue_name
        for kind in kinds
        if kind.can_run(worker_class=row.worker_class, needed_memory_bytes=row.needed_memory_bytes)
    ]
