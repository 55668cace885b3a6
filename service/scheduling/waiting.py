"""Why a job waits, in words for its owner. Read when it is asked for; nothing decides by it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from sqlalchemy.orm import Session

from service.jobs.states import Status
from service.models import Job, ProjectQueue
from service.scheduling.workers import Kind, known

_GIB = 1024**3


class Reason(StrEnum):
    TURN = "turn"
    """Other jobs go first, or a worker takes it within moments."""
    PROJECT_LIMIT = "project_limit"
    MEMORY = "memory"
    """Too large for every known worker that the project may use."""
    WORKER_CLASS = "worker_class"
    """The project is bound to a class of workers of which none is known."""
    NO_WORKER = "no_worker"


@dataclass(frozen=True)
class Wait:
    reason: Reason
    message: str


class Waits:
    """Of the jobs of one project, as things are now."""

    def __init__(self, session: Session, project_id: str, *, now: float) -> None:
        self._queue = session.get(ProjectQueue, project_id)
        self._kinds = known(session, now=now)

    def why(self, job: Job) -> Wait | None:
        """None for a job that is not queued."""
        if job.status != Status.QUEUED.value:
            return None
        queue, needed = self._queue, job.needed_memory_bytes
        bound = None if queue is None else queue.worker_class
        if not self._kinds:
            return Wait(
                Reason.NO_WORKER, "No worker of this server is there now; the job starts when one comes."
            )
        allowed = [kind for kind in self._kinds if kind.can_run(worker_class=bound, needed_memory_bytes=None)]
        if not allowed:
            text = "No worker of the class that this project is bound to is there now; ask your operator."
            return Wait(Reason.WORKER_CLASS, text)
        if not any(kind.can_run(worker_class=bound, needed_memory_bytes=needed) for kind in allowed):
            return Wait(Reason.MEMORY, _too_large(needed or 0, allowed))
        limit = 0 if queue is None else queue.running_limit or 0
        if queue is not None and limit and queue.num_running >= limit:
            text = f"This project runs {queue.num_running} of the {limit} jobs that it may run at once."
            return Wait(Reason.PROJECT_LIMIT, text)
        return Wait(Reason.TURN, "The job waits for its turn.")


def _too_large(needed_bytes: int, kinds: list[Kind]) -> str:
    largest = max(kind.memory_bytes for kind in kinds)
    return (
        f"Training needs about {needed_bytes / _GIB:.3g} GiB of device memory, and the largest worker has "
        f"{largest / _GIB:.3g} GiB. Use shorter examples, a lower rank or fewer target modules, or ask your "
        "operator for a larger worker; the job starts when one comes."
    )
