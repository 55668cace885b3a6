"""Queries for files. Every one is bound to a project: what is not yours is not there."""

from __future__ import annotations

import time
from collections.abc import Sequence

from sqlalchemy import ColumnElement, and_, or_, select
from sqlalchemy.orm import Session

from service.jobs.states import TERMINAL
from service.models import File, Job
from service.pagination import after_row, cut


def _there(now: float | None) -> ColumnElement[bool]:
    """Neither deleted nor expired at `now`, by default this moment."""
    moment = time.time() if now is None else now
    return and_(File.deleted_at.is_(None), or_(File.expires_at.is_(None), File.expires_at > moment))


def get_file(session: Session, project_id: str, file_id: str, *, now: float | None = None) -> File | None:
    query = select(File).where(File.id == file_id, File.project_id == project_id, _there(now))
    return session.scalars(query).one_or_none()


def get_file_for_update(
    session: Session, project_id: str, file_id: str, *, now: float | None = None
) -> File | None:
    """Locks the row against jobs that are just being created with it."""
    query = select(File).where(File.id == file_id, File.project_id == project_id, _there(now))
    return session.scalars(query.with_for_update()).one_or_none()


def get_file_for_job(
    session: Session, project_id: str, file_id: str, *, now: float | None = None
) -> File | None:
    """Locks the row against deletion until the job that uses it is committed."""
    query = select(File).where(File.id == file_id, File.project_id == project_id, _there(now))
    return session.scalars(query.with_for_update(read=True)).one_or_none()


def expired(session: Session, *, now: float) -> list[str]:
    """Ids of files of any project whose time is over and whose bytes are still there."""
    query = select(File.id).where(File.expires_at <= now, File.deleted_at.is_(None))
    return list(session.scalars(query.order_by(File.expires_at)))


def get_expired_for_update(session: Session, file_id: str, *, now: float) -> File | None:
    """Locks the row; None if another process was faster."""
    query = select(File).where(File.id == file_id, File.expires_at <= now, File.deleted_at.is_(None))
    return session.scalars(query.with_for_update()).one_or_none()


def position(session: Session, project_id: str, file_id: str) -> tuple[float, str] | None:
    """Where a file stands in the listing. A deleted one still has a place: a client may delete
    while it pages."""
    query = select(File.created_at, File.id).where(File.id == file_id, File.project_id == project_id)
    row = session.execute(query).first()
    return None if row is None else (row[0], row[1])


def list_files(
    session: Session,
    project_id: str,
    *,
    purpose: str | None,
    after: tuple[float, str] | None,
    limit: int,
    ascending: bool,
    now: float | None = None,
) -> tuple[list[File], bool]:
    """One page, and whether there is more."""
    query = select(File).where(File.project_id == project_id, _there(now))
    if purpose is not None:
        query = query.where(File.purpose == purpose)
    query = after_row(query, File.created_at, File.id, after=after, ascending=ascending)
    return cut(list(session.scalars(query.limit(limit + 1))), limit)


def names_of(session: Session, file_ids: Sequence[str]) -> dict[str, str]:
    """File names by id, also of deleted files: for showing them beside a project's own jobs."""
    query = select(File.id, File.filename).where(File.id.in_(set(file_ids)))
    return {row[0]: row[1] for row in session.execute(query)}


def live_job_using(session: Session, file_id: str) -> str | None:
    """The id of a job that has not ended and trains or validates on the file."""
    query = (
        select(Job.id)
        .where(
            or_(Job.training_file_id == file_id, Job.validation_file_id == file_id),
            Job.status.not_in([status.value for status in TERMINAL]),
        )
        .limit(1)
    )
    return session.scalars(query).first()
