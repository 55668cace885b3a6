"""The outbox: a doorbell is written in the transaction that made it necessary and rung afterwards.

A message says that there is work, and carries the id of the job that made it necessary; which job is done is
the worker's choice (`service.scheduling.policy`). Losing one is harmless (the reaper rings again), and so is
ringing twice (a claim succeeds once), so sending is at-least-once without further care.
"""

from __future__ import annotations

from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from service.models import Job, OutboxMessage
from service.tracing import current_traceparent


def add(session: Session, job_id: str, *, now: float) -> None:
    """A bell for whoever can run this job. It touches no job, so that it may be rung with other rows
    locked."""
    traceparent = session.scalar(select(Job.traceparent).where(Job.id == job_id)) or current_traceparent()
    session.add(OutboxMessage(job_id=job_id, created_at=now, traceparent=traceparent))
    session.flush()


def enqueue(session: Session, job_id: str, *, now: float) -> None:
    """A bell that counts as this job's own: it is rung again if nobody takes the job."""
    traced = update(Job).where(Job.id == job_id).values(rung_at=now).returning(Job.traceparent)
    # The job's own first: the end of one job rings for another.
    traceparent = session.scalar(traced) or current_traceparent()
    session.add(OutboxMessage(job_id=job_id, created_at=now, traceparent=traceparent))
    session.flush()


def pending(session: Session, *, limit: int = 100) -> list[OutboxMessage]:
    """Unsent messages, oldest first, locked on PostgreSQL so that several publishers share the work."""
    query = (
        select(OutboxMessage)
        .where(OutboxMessage.sent_at.is_(None))
        .order_by(OutboxMessage.sequence)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    return list(session.scalars(query))


def forget_sent(session: Session, *, before: float) -> None:
    session.execute(delete(OutboxMessage).where(OutboxMessage.sent_at < before))
