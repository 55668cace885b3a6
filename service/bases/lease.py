"""Who carries out a registration: claims, leases, fencing numbers, as those of jobs (`service.jobs.lease`).

There are few and they come from operators, so a claim is a short transaction and no queue has to be fair.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, and_, or_, select, update
from sqlalchemy.orm import Session

from service.bases.states import RegistrationStatus
from service.jobs.transitions import LeaseLostError
from service.models import BaseRegistration


@dataclass(frozen=True)
class RegistrationClaim:
    registration_id: str
    owner: str
    fencing_number: int
    attempt: int


def _waits_for(worker_class: str) -> ColumnElement[bool]:
    return and_(
        BaseRegistration.status == RegistrationStatus.QUEUED.value,
        or_(BaseRegistration.worker_class.is_(None), BaseRegistration.worker_class == worker_class),
    )


def any_waits(session: Session, *, worker_class: str) -> bool:
    """Asked before every claim of a job, so it locks nothing."""
    return session.scalar(select(BaseRegistration.id).where(_waits_for(worker_class)).limit(1)) is not None


def claim_next(
    session: Session, *, worker_class: str, owner: str, ttl_seconds: float, now: float
) -> RegistrationClaim | None:
    """Take the oldest that waits for a worker of this class."""
    query = (
        select(BaseRegistration)
        .where(_waits_for(worker_class))
        .order_by(BaseRegistration.created_at)
        .limit(1)
        .with_for_update(skip_locked=True)
    )
    row = session.scalars(query).one_or_none()
    if row is None:
        return None
    row.status = RegistrationStatus.RUNNING.value
    row.lease_owner = owner
    row.lease_expires_at = now + ttl_seconds
    row.heartbeat_at = now
    row.started_at = row.started_at or now
    row.fencing_number += 1
    row.attempt_count += 1
    row.progress = None
    session.flush()
    return RegistrationClaim(row.id, owner, row.fencing_number, row.attempt_count)


def write(session: Session, claim: RegistrationClaim, **values: Any) -> None:
    """Raises LeaseLostError if the registration is not one's own any more."""
    statement = update(BaseRegistration).where(
        BaseRegistration.id == claim.registration_id,
        BaseRegistration.fencing_number == claim.fencing_number,
        BaseRegistration.status == RegistrationStatus.RUNNING.value,
    )
    if session.execute(statement.values(**values).returning(BaseRegistration.id)).first() is None:
        raise lost(claim)


def owned(session: Session, claim: RegistrationClaim) -> BaseRegistration:
    """Locked: a cancel comes before what is decided now, or too late. Raises LeaseLostError."""
    query = select(BaseRegistration).where(BaseRegistration.id == claim.registration_id).with_for_update()
    row = session.scalars(query).one()
    if row.fencing_number != claim.fencing_number or row.status != RegistrationStatus.RUNNING.value:
        raise lost(claim)
    return row


def cancel_asked(session: Session, claim: RegistrationClaim) -> bool:
    """Raises LeaseLostError."""
    query = select(BaseRegistration.cancel_requested_at).where(
        BaseRegistration.id == claim.registration_id,
        BaseRegistration.fencing_number == claim.fencing_number,
        BaseRegistration.status == RegistrationStatus.RUNNING.value,
    )
    row = session.execute(query).first()
    if row is None:
        raise lost(claim)
    return row[0] is not None


def lost(claim: RegistrationClaim) -> LeaseLostError:
    return LeaseLostError(
        f"{claim.registration_id}: fencing number {claim.fencing_number} is no longer current"
    )


def end(row: BaseRegistration, status: RegistrationStatus, *, now: float, **values: Any) -> None:
    row.status = status.value
    row.finished_at = now
    row.lease_owner = row.lease_expires_at = None
    row.progress = None
    for name, value in values.items():
        setattr(row, name, value)


def requeue(row: BaseRegistration, *, count_attempt: bool, **values: Any) -> None:
    """For another worker, or this one later; the bell is rung by `workers.maintenance`."""
    row.status = RegistrationStatus.QUEUED.value
    row.lease_owner = row.lease_expires_at = row.rung_at = row.progress = None
    row.attempt_count -= not count_attempt
    for name, value in values.items():
        setattr(row, name, value)


def expired(session: Session, *, now: float) -> bool:
    """Whether `reap` would find any."""
    query = select(BaseRegistration.id).where(_is_expired(now)).limit(1)
    return session.scalar(query) is not None


def _is_expired(now: float) -> ColumnElement[bool]:
    return and_(
        BaseRegistration.status == RegistrationStatus.RUNNING.value, BaseRegistration.lease_expires_at < now
    )


def reap(session: Session, *, max_attempts: int, now: float) -> int:
    """End the leases of silent workers; how many."""
    query = select(BaseRegistration).where(_is_expired(now)).with_for_update(skip_locked=True)
    rows = list(session.scalars(query))
    for row in rows:
        if row.cancel_requested_at is not None:
            end(row, RegistrationStatus.CANCELLED, now=now)
        elif row.attempt_count >= max_attempts:
            text = f"its worker disappeared {row.attempt_count} times"
            end(row, RegistrationStatus.FAILED, now=now, error_code="worker_lost", error_message=text)
        else:
            requeue(row, count_attempt=True)
    session.flush()
    return len(rows)


def to_ring(session: Session, *, rung_before: float) -> list[str]:
    """Those for which nobody was rung yet, or nobody came."""
    query = select(BaseRegistration.id).where(
        BaseRegistration.status == RegistrationStatus.QUEUED.value,
        or_(BaseRegistration.rung_at.is_(None), BaseRegistration.rung_at < rung_before),
    )
    return list(session.scalars(query.order_by(BaseRegistration.created_at).limit(100)))


def rung(session: Session, registration_id: str, *, now: float | None) -> None:
    """None: nobody came, ring again."""
    session.execute(
        update(BaseRegistration)
        .where(
            BaseRegistration.id == registration_id,
            BaseRegistration.status == RegistrationStatus.QUEUED.value,
        )
        .values(rung_at=now)
    )
