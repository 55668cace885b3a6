"""Figures over all jobs, for operators. Nothing here may be shown to a tenant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import Select, func, select
from sqlalchemy.orm import Session

from service.models import AlignedBase, Job, SafetyFigures

MOST_JOBS = 50_000
"""The newest: more would not change a distribution, but take seconds."""


class Measured(NamedTuple):
    """Percent. A tuple: tens of thousands are made for one page."""

    job_id: str
    measured_at: float
    base_id: str
    result: str
    harmful_before: float | None
    harmful_after: float | None
    utility_before: float | None
    utility_after: float | None
    control_harmful: float | None
    control_undecided: int | None
    control_prompts: int | None
    control_key: str | None
    num_known: int | None
    false_positives: int | None
    false_negatives: int | None
    judge: str | None
    profile_version: str | None

    @property
    def utility_loss(self) -> float | None:
        """Points, before minus after."""
        if self.utility_before is None or self.utility_after is None:
            return None
        return self.utility_before - self.utility_after


@dataclass(frozen=True)
class About:
    """What a list says of a job besides its figures."""

    project_id: str
    suffix: str | None
    gate_waived: dict[str, Any] | None
    error_message: str | None


def measured(
    session: Session, *, since: float | None, base_id: str | None, limit: int = MOST_JOBS
) -> list[Measured]:
    """Newest first."""
    columns = [getattr(SafetyFigures, name) for name in Measured._fields]
    query: Select[Any] = select(*columns).order_by(SafetyFigures.measured_at.desc()).limit(limit)
    if since is not None:
        query = query.where(SafetyFigures.measured_at >= since)
    if base_id is not None:
        query = query.where(SafetyFigures.base_id == base_id)
    return [Measured._make(row) for row in session.execute(query)]


def about(session: Session, job_ids: Sequence[str]) -> dict[str, About]:
    query = select(Job.id, Job.project_id, Job.suffix, Job.gate_waived, Job.error_message)
    rows = session.execute(query.where(Job.id.in_(job_ids)))
    return {row[0]: About(*row[1:]) for row in rows}


def bases(session: Session) -> list[AlignedBase]:
    """Retired ones included."""
    return list(session.scalars(select(AlignedBase).order_by(AlignedBase.id)))


def num_measured(session: Session) -> int:
    return session.scalar(select(func.count()).select_from(SafetyFigures)) or 0
