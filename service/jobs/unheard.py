"""Queued jobs for which nobody came."""

from __future__ import annotations

from sqlalchemy import and_, func, select
from sqlalchemy.orm import Session

from service.jobs.states import Status
from service.models import Job, ProjectQueue

MOST_RUNG = 1000


def silent(session: Session, *, rung_before: float, limit: int = 100) -> list[str]:
    """Queued jobs whose doorbell brought nobody: the message was lost, or the broker was. Not those whose
    project runs as many as it may, the end of one rings for them; and not more than `MOST_RUNG` in as long as
    it takes to be silent: a worker that hears one bell goes on until nothing is left."""
    lately = (
        select(Job.id).where(Job.status == Status.QUEUED.value, Job.rung_at >= rung_before).limit(MOST_RUNG)
    )
    room = MOST_RUNG - (session.scalar(select(func.count()).select_from(lately.subquery())) or 0)
    limited = and_(ProjectQueue.running_limit > 0, ProjectQueue.num_running >= ProjectQueue.running_limit)
    query = (
        select(Job.id)
        .outerjoin(ProjectQueue, ProjectQueue.project_id == Job.project_id)
        .where(
            Job.status == Status.QUEUED.value,
            Job.rung_at < rung_before,
            func.coalesce(limited, False).is_(False),
        )
        .order_by(Job.rung_at)
        .limit(max(0, min(limit, room)))
    )
    return list(session.scalars(query))
