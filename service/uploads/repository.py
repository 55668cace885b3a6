"""Queries for uploads and their parts. Every one a client can reach is bound to a project."""

from __future__ import annotations

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from service.models import Upload, UploadPart


def get_upload(session: Session, project_id: str, upload_id: str) -> Upload | None:
    query = select(Upload).where(Upload.id == upload_id, Upload.project_id == project_id)
    return session.scalars(query).one_or_none()


def get_upload_for_update(session: Session, project_id: str, upload_id: str) -> Upload | None:
    """Locks the row: parts, completing, cancelling and expiring come one after the other."""
    query = select(Upload).where(Upload.id == upload_id, Upload.project_id == project_id)
    return session.scalars(query.with_for_update()).one_or_none()


def list_parts(session: Session, upload_id: str) -> list[UploadPart]:
    query = select(UploadPart).where(UploadPart.upload_id == upload_id)
    return list(session.scalars(query.order_by(UploadPart.created_at, UploadPart.id)))


def parts_stored(session: Session, upload_id: str) -> tuple[int, int]:
    """How many, and how many bytes they hold."""
    query = select(func.count(), func.coalesce(func.sum(UploadPart.bytes), 0))
    number, num_bytes = session.execute(query.where(UploadPart.upload_id == upload_id)).one()
    return number, int(num_bytes)


def forget_parts(session: Session, upload_id: str) -> None:
    session.execute(delete(UploadPart).where(UploadPart.upload_id == upload_id))


def expired(session: Session, *, before: float) -> list[tuple[str, str]]:
    """(project id, upload id) of pending uploads of any project that expired before then."""
    query = select(Upload.project_id, Upload.id).where(Upload.status == "pending", Upload.expires_at < before)
    return [(row[0], row[1]) for row in session.execute(query.order_by(Upload.expires_at))]
