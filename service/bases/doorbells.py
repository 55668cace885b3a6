"""Where to ring for a registration: every known kind of worker of its class."""

from __future__ import annotations

from sqlalchemy.orm import Session

from service import ids
from service.bases.states import RegistrationStatus
from service.models import BaseRegistration
from service.scheduling.workers import DEFAULT_QUEUE, known


def is_for_a_base(message: str) -> bool:
    """Whether what a doorbell names is a registration and no job."""
    return message.startswith(ids.BASE_REGISTRATION)


def bell_queues(session: Session, registration_id: str, *, now: float) -> list[str]:
    """Nowhere if it waits for nobody, or for a class of which no worker is known; the default queue where no
    worker is known at all."""
    row = session.get(BaseRegistration, registration_id)
    if row is None or row.status != RegistrationStatus.QUEUED.value:
        return []
    kinds = known(session, now=now)
    if not kinds:
        return [DEFAULT_QUEUE]
    return [kind.queue_name for kind in kinds if row.worker_class in (None, kind.worker_class)]
