"""Queries for released adapters, bound to a project."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.models import Adapter


def get_adapter_of_job(session: Session, project_id: str, job_id: str) -> Adapter | None:
    query = select(Adapter).where(
        Adapter.job_id == job_id, Adapter.project_id == project_id, Adapter.deleted_at.is_(None)
    )
    return session.scalars(query).one_or_none()
