"""Queries for released adapters and their files. Every one but the sweep's is bound to a project."""

from __future__ import annotations

from sqlalchemy import ColumnElement, and_, or_, select
from sqlalchemy.orm import Session

from service.models import Adapter, AdapterFile
from service.pagination import after_row, cut


def is_there(now: float) -> ColumnElement[bool]:
    """Neither deleted nor expired."""
    return and_(Adapter.deleted_at.is_(None), or_(Adapter.expires_at.is_(None), Adapter.expires_at > now))


def get_adapter_of_job(session: Session, project_id: str, job_id: str) -> Adapter | None:
    """Also one that was deleted or has expired: its row says so."""
    query = select(Adapter).where(Adapter.job_id == job_id, Adapter.project_id == project_id)
    return session.scalars(query).one_or_none()


def get_adapter(session: Session, project_id: str, model_id: str, *, now: float) -> Adapter | None:
    """One that is there."""
    query = select(Adapter).where(
        Adapter.model_id == model_id, Adapter.project_id == project_id, is_there(now)
    )
    return session.scalars(query).one_or_none()


def get_adapter_for_update(session: Session, project_id: str, model_id: str, *, now: float) -> Adapter | None:
    """One that is there. Locks the row."""
    query = select(Adapter).where(
        Adapter.model_id == model_id, Adapter.project_id == project_id, is_there(now)
    )
    return session.scalars(query.with_for_update()).one_or_none()


def list_adapters(
    session: Session, project_id: str, *, after: str | None, limit: int, now: float
) -> tuple[list[Adapter], bool]:
    """One page of a project's own, newest first, and whether there is more. Nothing after a model that is not
    its own."""
    query = select(Adapter).where(Adapter.project_id == project_id, is_there(now))
    place = None
    if after is not None:
        row = session.execute(
            select(Adapter.created_at, Adapter.model_id).where(
                Adapter.model_id == after, Adapter.project_id == project_id
            )
        ).first()
        if row is None:
            return [], False
        place = (row[0], row[1])
    query = after_row(query, Adapter.created_at, Adapter.model_id, after=place)
    return cut(list(session.scalars(query.limit(limit + 1))), limit)


def list_files(session: Session, model_id: str) -> list[AdapterFile]:
    query = select(AdapterFile).where(AdapterFile.model_id == model_id).order_by(AdapterFile.name)
    return list(session.scalars(query))


def get_file(session: Session, model_id: str, name: str) -> AdapterFile | None:
    query = select(AdapterFile).where(AdapterFile.model_id == model_id, AdapterFile.name == name)
    return session.scalars(query).one_or_none()


def expired(session: Session, *, now: float) -> list[str]:
    """Model ids, of any project, whose time is over and whose bytes are still there."""
    query = select(Adapter.model_id).where(Adapter.expires_at <= now, Adapter.deleted_at.is_(None))
    return list(session.scalars(query.order_by(Adapter.expires_at)))


def get_expired_for_update(session: Session, model_id: str, *, now: float) -> Adapter | None:
    """Locks the row; None if another process was faster."""
    query = select(Adapter).where(
        Adapter.model_id == model_id, Adapter.expires_at <= now, Adapter.deleted_at.is_(None)
    )
    return session.scalars(query.with_for_update()).one_or_none()
