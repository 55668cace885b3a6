"""The whole picture of a project's quotas, for its owner and for operators; and changing them."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping

from sqlalchemy.orm import Session

from service.audit.log import Actor, record
from service.auth import UnknownIdError
from service.jobs.states import Status
from service.models import Project, ProjectQuota
from service.quotas import usage
from service.quotas.limits import Quota, quota_of
from service.quotas.schemas import QuotaUse
from service.rates.limiter import Kind, RateLimiter
from service.scheduling import lanes

_RUNG_BY_RAISING = 100


def quotas_in_use(session: Session, project_id: str, default: Quota, *, now: float) -> dict[str, QuotaUse]:
    quota = quota_of(session, project_id, default)
    created, first = usage.jobs_of_a_day(session, project_id, now=now)
    return {
        "storage_bytes": _use(usage.storage_bytes(session, project_id), quota.storage_bytes),
        "concurrent_jobs": _use(usage.jobs(session, project_id, Status.RUNNING.value), quota.concurrent_jobs),
        "queued_jobs": _use(usage.jobs(session, project_id, *usage.WAITING), quota.queued_jobs),
        "jobs_per_day": _use(
            created, quota.jobs_per_day, resets_at=None if first is None else first + usage.DAY_SECONDS
        ),
        "gpu_seconds": _use(
            round(usage.gpu_seconds(session, project_id, now=now), 3),
            quota.gpu_seconds,
            resets_at=usage.next_month_start(now),
        ),
    }


def requests_in_use(limiter: RateLimiter, project_id: str) -> dict[str, QuotaUse]:
    uses = {}
    for kind in Kind:
        window = limiter.look(project_id, kind)
        uses[f"{kind}_per_minute"] = _use(
            None if window is None else window.used,
            limiter.limit(project_id, kind),
            resets_at=None if window is None or not window.used else time.time() + window.reset_seconds,
        )
    return uses


def requests_limit(session: Session, project_id: str) -> int | None:
    """A project's own number of requests per minute; None where the settings' count."""
    own = session.get(ProjectQuota, project_id)
    return None if own is None else own.requests_per_minute


def _use(used: float | None, limit: int, *, resets_at: float | None = None) -> QuotaUse:
    return QuotaUse(
        used=used, limit=limit or None, resets_at=None if resets_at is None else math.ceil(resets_at)
    )


def change_quota(
    session: Session,
    project_id: str,
    changes: Mapping[str, int],
    *,
    reset: bool,
    actor: Actor,
    now: float,
) -> None:
    """Set a project's own numbers, after forgetting all of them if `reset`. Raises UnknownIdError."""
    project = session.get(Project, project_id)
    if project is None:
        raise UnknownIdError(f"there is no project {project_id!r}")
    row = session.get(ProjectQuota, project_id)
    if row is None:
        row = ProjectQuota(project_id=project_id)
        session.add(row)
    if reset:
        for name in OWN_NUMBERS:
            setattr(row, name, None)
    for name, value in changes.items():
        assert name in OWN_NUMBERS, name
        setattr(row, name, value)
    record(
        session,
        actor,
        "quota.changed",
        project_id,
        organization_id=project.organization_id,
        project_id=project_id,
        now=now,
        reset=reset,
        changes=dict(changes),
    )
    # Jobs that wait for others of their project may be free to go.
    lanes.locked(session, project_id).running_limit = row.concurrent_jobs
    lanes.ring(session, project_id, now=now, count=_RUNG_BY_RAISING)


OWN_NUMBERS = (*Quota.__dataclass_fields__, "requests_per_minute")
