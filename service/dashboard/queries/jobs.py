"""Jobs of all projects, newest first. Narrow rows: a job's row is tens of kilobytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, or_, select
from sqlalchemy.orm import Session

from service.dashboard.queries.names import ProjectName, names_of_projects
from service.models import AlignedBase, Job, SafetyFigures
from service.pagination import after_row, cut


@dataclass(frozen=True)
class JobLine:
    id: str
    project_id: str
    project: ProjectName | None
    base_id: str
    suffix: str | None
    status: str
    stage: str
    created_at: float
    started_at: float | None
    finished_at: float | None
    error_code: str | None
    gate_waived: dict[str, Any] | None
    harmful_before: float | None
    harmful_after: float | None


@dataclass(frozen=True)
class JobSearch:
    """All that are given must match. `project_ids` None: of every project."""

    status: str | None = None
    base_id: str | None = None
    project_ids: tuple[str, ...] | None = None
    words: str | None = None
    """Part of the job's id or suffix."""


def find_jobs(
    session: Session, search: JobSearch, *, after: tuple[float, str] | None, limit: int
) -> tuple[list[JobLine], bool]:
    """One page, and whether there is more."""
    query = select(
        Job.id,
        Job.project_id,
        Job.base_id,
        Job.suffix,
        Job.status,
        Job.stage,
        Job.created_at,
        Job.started_at,
        Job.finished_at,
        Job.error_code,
        Job.gate_waived,
        SafetyFigures.harmful_before,
        SafetyFigures.harmful_after,
    ).outerjoin(SafetyFigures, SafetyFigures.job_id == Job.id)
    if search.status is not None:
        query = query.where(Job.status == search.status)
    if search.base_id is not None:
        query = query.where(Job.base_id == search.base_id)
    if search.project_ids is not None:
        query = query.where(Job.project_id.in_(search.project_ids))
    if search.words is not None:
        words = search.words.lower()
        query = query.where(
            or_(
                func.lower(Job.id).contains(words, autoescape=True),
                func.lower(Job.suffix).contains(words, autoescape=True),
            )
        )
    query = after_row(query, Job.created_at, Job.id, after=after).limit(limit + 1)
    rows, has_more = cut(list(session.execute(query)), limit)
    names = names_of_projects(session, {row.project_id for row in rows})
    return [JobLine(project=names.get(row.project_id), **row._mapping) for row in rows], has_more


def place_of(session: Session, job_id: str) -> tuple[float, str] | None:
    row = session.execute(select(Job.created_at, Job.id).where(Job.id == job_id)).first()
    return None if row is None else (row[0], row[1])


def all_bases(session: Session) -> list[str]:
    """Retired ones included: their jobs are still there."""
    return list(session.scalars(select(AlignedBase.id).order_by(AlignedBase.id)))
