"""How many workers a project's jobs could run on now, by their devices. Counts and sizes: a tenant is told of
them, so nothing here names a machine, a card or a class (docs/decisions/0038)."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from service.fleet.repository import STUCK_HEARTBEAT_SECONDS
from service.fleet.states import WorkerState
from service.models import ProjectQueue, Worker

_TAKING = (WorkerState.IDLE.value, WorkerState.BUSY.value)


@dataclass(frozen=True)
class AlikeWorkers:
    """`number` of them. `memory_bytes` is what training may take of one GPU, or of the machine; null where
    nobody can tell."""

    device: str
    """`cuda` or `cpu`."""
    memory_bytes: int | None
    num_processes: int
    """That train a job together; 0 is one for each GPU."""
    number: int


@dataclass(frozen=True)
class UsableWorkers:
    """`alike` are those that may take the project's jobs; `are_others`: there are some of other classes."""

    alike: list[AlikeWorkers]
    are_others: bool


def usable_workers(session: Session, project_id: str, *, now: float) -> UsableWorkers:
    """Those that said within two minutes that they take jobs; one that stops takes none."""
    bound_to = session.scalar(select(ProjectQueue.worker_class).where(ProjectQueue.project_id == project_id))
    columns = (Worker.device_kind, Worker.job_memory_bytes, Worker.job_processes, Worker.worker_class)
    query = (
        select(*columns, func.count())
        .where(Worker.heartbeat_at > now - STUCK_HEARTBEAT_SECONDS, Worker.state.in_(_TAKING))
        .group_by(*columns)
    )
    alike, are_others = [], False
    for device, memory_bytes, num_processes, worker_class, number in session.execute(query):
        if bound_to in (None, worker_class):
            alike.append(AlikeWorkers(device, memory_bytes, num_processes or 0, number))
        else:
            are_others = True
    return UsableWorkers(alike, are_others)
