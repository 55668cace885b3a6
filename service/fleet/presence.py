"""What a worker writes about itself, and how old rows go."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from sqlalchemy import delete, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from service.fleet.states import WorkerState
from service.models import Worker


@dataclass(frozen=True)
class Sighting:
    """One heartbeat. Times are seconds since the epoch."""

    id: str
    host: str
    pid: int
    started_at: float
    heartbeat_at: float
    state: WorkerState
    job_id: str | None
    device_kind: str
    device_name: str
    memory_used_bytes: int | None
    memory_total_bytes: int | None
    worker_class: str | None = None
    job_memory_bytes: int | None = None
    """What training may take of one GPU, or of the machine where there is none."""
    job_processes: int | None = None


def see(session: Session, sighting: Sighting) -> None:
    """Write the worker's row, or write it anew."""
    values = asdict(sighting) | {"state": sighting.state.value}
    insert = postgresql.insert if session.get_bind().dialect.name == "postgresql" else sqlite.insert
    statement = insert(Worker).values(values)
    session.execute(
        statement.on_conflict_do_update(
            index_elements=["id"], set_={name: statement.excluded[name] for name in values if name != "id"}
        )
    )


def leave(session: Session, worker_id: str, *, now: float) -> None:
    """The worker stopped by itself."""
    session.execute(
        update(Worker)
        .where(Worker.id == worker_id)
        .values(state=WorkerState.GONE.value, job_id=None, heartbeat_at=now)
    )


def forget(session: Session, *, seen_before: float) -> None:
    """Delete the rows of workers that nobody heard of since then."""
    session.execute(delete(Worker).where(Worker.heartbeat_at < seen_before))
