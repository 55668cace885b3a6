"""What the page of one job reads. Whose job it is: `project_id`, or None for operators, who may see all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import BindParameter, Select, bindparam, func, select
from sqlalchemy.orm import Session

from service.jobs import repository
from service.jobs.repository import JobView
from service.models import AlignedBase, File, Job, JobCheckpoint, JobEvent, Organization, Project
from service.pagination import cut

MOST_COPIES = 20
MOST_CHECKPOINTS = 20


@dataclass(frozen=True)
class Position:
    """Where a job stands: what the page compares to know whether anything changed."""

    status: str
    stage: str
    fencing_number: int
    step: int | None
    asked: str
    """Of what was asked: c cancel, p pause."""
    newest_event: int


_newest_event = (
    select(func.max(JobEvent.sequence)).where(JobEvent.job_id == Job.id).correlate(Job).scalar_subquery()
)


def _position(project_id: BindParameter[str] | None) -> Select[Any]:
    query = select(
        Job.status,
        Job.stage,
        Job.fencing_number,
        Job.progress,
        Job.cancel_requested_at,
        Job.pause_requested_at,
        _newest_event,
    ).where(Job.id == bindparam("job_id"))
    return query if project_id is None else query.where(Job.project_id == project_id)


# Built once: open pages ask for it every few seconds, and building it takes longer than running it.
_ANY_POSITION = _position(None)
_OWN_POSITION = _position(bindparam("project_id"))


def position(session: Session, job_id: str, project_id: str | None) -> Position | None:
    """One statement, by primary key and by the last entry of an index."""
    if project_id is None:
        row = session.execute(_ANY_POSITION, {"job_id": job_id}).first()
    else:
        row = session.execute(_OWN_POSITION, {"job_id": job_id, "project_id": project_id}).first()
    if row is None:
        return None
    status, stage, fencing_number, progress, cancel, pause, newest = row
    flags = ((cancel, "c"), (pause, "p"))
    asked = "".join(flag for value, flag in flags if value is not None)
    return Position(status, stage, fencing_number, (progress or {}).get("step"), asked, newest or 0)


def find_job(session: Session, job_id: str, project_id: str | None) -> JobView | None:
    if project_id is None:
        project_id = session.scalar(select(Job.project_id).where(Job.id == job_id))
    return None if project_id is None else repository.get_job(session, project_id, job_id)


def owner_names(session: Session, job: Job) -> tuple[str, str]:
    """Of its organization and its project."""
    row = session.execute(
        select(Organization.name, Project.name)
        .join(Project, Project.organization_id == Organization.id)
        .where(Project.id == job.project_id)
    ).one()
    return row[0], row[1]


def base_defaults(session: Session, base_id: str) -> dict[str, Any]:
    spec: dict[str, Any] = session.scalars(
        select(AlignedBase.default_spec).where(AlignedBase.id == base_id)
    ).one()
    return spec


def copies(session: Session, job: Job) -> list[Job]:
    """Jobs that were made from this one, oldest first."""
    query = select(Job).where(
        Job.project_id == job.project_id, Job.created_at >= job.created_at, Job.cloned_from == job.id
    )
    return list(session.scalars(query.order_by(Job.created_at, Job.id).limit(MOST_COPIES)))


def checkpoints(session: Session, job_id: str) -> list[JobCheckpoint]:
    """Newest first."""
    query = select(JobCheckpoint).where(JobCheckpoint.job_id == job_id)
    return list(session.scalars(query.order_by(JobCheckpoint.step_number.desc()).limit(MOST_CHECKPOINTS)))


def files(session: Session, ids: Sequence[str]) -> list[File]:
    """Those that are there, in the order of their ids here."""
    found = {file.id: file for file in session.scalars(select(File).where(File.id.in_(ids)))}
    return [found[id] for id in ids if id in found and found[id].deleted_at is None]


def messages(
    session: Session, job_id: str, *, before: int | None = None, after: int | None = None, limit: int
) -> tuple[list[JobEvent], bool]:
    """Of the log, newest first, without the figures of single steps; and whether there is more."""
    query = select(JobEvent).where(JobEvent.job_id == job_id, JobEvent.type == "message")
    if before is not None:
        query = query.where(JobEvent.sequence < before)
    if after is not None:
        query = query.where(JobEvent.sequence > after)
    query = query.order_by(JobEvent.sequence.desc()).limit(limit + 1)
    return cut(list(session.scalars(query)), limit)
