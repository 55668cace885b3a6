"""How the service's parts are, as far as the database knows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from autoclave.errors import ModelError
from service.catalog.base_files import linear_modules
from service.catalog.repository import list_bases
from service.jobs.error_kinds import KINDS
from service.jobs.states import Status
from service.models import Job, OutboxMessage, Webhook, WebhookDelivery
from service.webhooks.states import PENDING

DAY_SECONDS = 24 * 3600.0
BASE_PROBLEM_SECONDS = 7 * DAY_SECONDS
_OPERATORS_CODES = tuple(code for code, kind in KINDS.items() if kind == "operator")


@dataclass(frozen=True)
class Repeated:
    """Of the last 24 hours."""

    num_lost: int
    """Jobs that failed because their workers were lost too often."""
    num_repeated: int
    """Jobs created in that time that needed more than one attempt."""


@dataclass(frozen=True)
class Deliveries:
    """Of webhooks."""

    by_state: dict[str, int]
    """Created in the last 24 hours."""
    num_pending: int
    oldest_due_at: float | None
    num_disabled: int
    """Webhooks that were turned off because their receivers failed or are gone."""


@dataclass(frozen=True)
class BaseState:
    id: str
    missing: str | None
    """Why its files cannot be read here; null where they can."""
    num_failed: int
    """Jobs of the last seven days that failed by what the operator must put right."""
    error_code: str | None
    """Of the newest of them."""
    job_id: str | None
    succeeded_since: bool
    """Whether a job on it succeeded after that."""

    @property
    def is_a_problem(self) -> bool:
        return self.num_failed > 0 and not self.succeeded_since


def last_doorbell_at(session: Session) -> float | None:
    """When the maintenance loop last sent one."""
    return session.scalar(select(func.max(OutboxMessage.sent_at)))


def repeated(session: Session, *, now: float) -> Repeated:
    lost = select(func.count()).where(
        Job.status == Status.FAILED.value,
        Job.created_at > now - 7 * DAY_SECONDS,
        Job.error_code == "worker_lost",
        Job.finished_at > now - DAY_SECONDS,
    )
    again = select(func.count()).where(Job.created_at > now - DAY_SECONDS, Job.attempt_count > 1)
    return Repeated(session.scalar(lost) or 0, session.scalar(again) or 0)


def deliveries(session: Session, *, now: float) -> Deliveries:
    by_state = session.execute(
        select(WebhookDelivery.state, func.count())
        .where(WebhookDelivery.created_at > now - DAY_SECONDS)
        .group_by(WebhookDelivery.state)
    )
    num_pending, oldest = session.execute(
        select(func.count(), func.min(WebhookDelivery.next_attempt_at)).where(
            WebhookDelivery.state == PENDING
        )
    ).one()
    disabled = select(func.count()).where(
        Webhook.enabled.is_(False), Webhook.disabled_reason.in_(("gone", "failing"))
    )
    return Deliveries(
        {row[0]: row[1] for row in by_state}, num_pending, oldest, session.scalar(disabled) or 0
    )


def bases(session: Session, *, now: float) -> list[BaseState]:
    """Those that jobs may use."""
    failed = (
        select(Job.base_id, func.count(), func.max(Job.created_at))
        .where(
            Job.status == Status.FAILED.value,
            Job.created_at > now - BASE_PROBLEM_SECONDS,
            Job.error_code.in_(_OPERATORS_CODES),
        )
        .group_by(Job.base_id)
    )
    failures = {row[0]: (row[1], row[2]) for row in session.execute(failed)}
    states = []
    for base in list_bases(session):
        number, newest_at = failures.get(base.id, (0, None))
        newest = None
        if newest_at is not None:
            query = select(Job.id, Job.error_code, Job.finished_at).where(
                Job.base_id == base.id, Job.created_at == newest_at, Job.error_code.in_(_OPERATORS_CODES)
            )
            newest = session.execute(query.limit(1)).one()
        states.append(
            BaseState(
                base.id,
                _missing(base.path, base.sha256),
                number,
                None if newest is None else newest.error_code,
                None if newest is None else newest.id,
                newest is not None and _succeeded_since(session, base.id, newest.finished_at or 0.0),
            )
        )
    return states


def _succeeded_since(session: Session, base_id: str, since: float) -> bool:
    query = select(Job.id).where(
        Job.base_id == base_id, Job.status == Status.SUCCEEDED.value, Job.finished_at > since
    )
    return session.scalar(query.limit(1)) is not None


def _missing(path: str, sha256: str) -> str | None:
    try:
        linear_modules(Path(path), sha256)
    except ModelError as error:
        return str(error)
    except (OSError, ValueError):
        return "its files cannot be read"
    return None
