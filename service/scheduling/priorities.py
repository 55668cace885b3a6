"""What an operator sets for a project's queue."""

from __future__ import annotations

from sqlalchemy.orm import Session

from service.audit.log import Actor, record
from service.auth import UnknownIdError
from service.models import Project, ProjectQueue
from service.scheduling import lanes

LOWEST, HIGHEST = -100, 100
_RUNG = 100


def change(
    session: Session,
    project_id: str,
    *,
    priority: int | None,
    worker_class: str | None,
    actor: Actor,
    now: float,
) -> None:
    """None leaves as it is; the class "" is any. Raises UnknownIdError."""
    project = session.get(Project, project_id)
    if project is None:
        raise UnknownIdError(f"there is no project {project_id!r}")
    queue = lanes.locked(session, project_id)
    if priority is not None:
        assert LOWEST <= priority <= HIGHEST, priority
        queue.rank = -priority
    if worker_class is not None:
        queue.worker_class = worker_class or None
    record(
        session,
        actor,
        "priority.changed",
        project_id,
        organization_id=project.organization_id,
        project_id=project_id,
        now=now,
        priority=-queue.rank,
        worker_class=queue.worker_class,
    )
    session.flush()
    # Workers of another class may be idle.
    lanes.ring(session, project_id, now=now, count=_RUNG)


def look(session: Session, project_id: str) -> ProjectQueue:
    """The project's row, or what one would say that never had a job."""
    return session.get(ProjectQueue, project_id) or ProjectQueue(
        project_id=project_id, rank=0, worker_class=None, num_running=0, num_waiting=0, recent=0.0
    )
