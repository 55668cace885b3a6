"""Queries for bases, also retired ones, and for their registrations. Both are the whole server's."""

from __future__ import annotations

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from service.bases.states import LIVE
from service.models import AlignedBase, BaseRegistration
from service.pagination import after_row, cut


def get_base(session: Session, base_id: str) -> AlignedBase | None:
    return session.get(AlignedBase, base_id)


def list_bases(
    session: Session, *, include_retired: bool, after: str | None, limit: int
) -> tuple[list[AlignedBase], bool]:
    """One page by id, and whether there is more."""
    query = select(AlignedBase).order_by(AlignedBase.id)
    if not include_retired:
        query = query.where(AlignedBase.retired_at.is_(None))
    if after is not None:
        query = query.where(AlignedBase.id > after)
    return cut(list(session.scalars(query.limit(limit + 1))), limit)


def get_registration(
    session: Session, registration_id: str, *, for_update: bool = False
) -> BaseRegistration | None:
    query = select(BaseRegistration).where(BaseRegistration.id == registration_id)
    return session.scalars(query.with_for_update() if for_update else query).one_or_none()


def list_registrations(
    session: Session, *, after: tuple[float, str] | None, limit: int
) -> tuple[list[BaseRegistration], bool]:
    """One page, newest first, and whether there is more."""
    query = after_row(select(BaseRegistration), BaseRegistration.created_at, BaseRegistration.id, after=after)
    return cut(list(session.scalars(query.limit(limit + 1))), limit)


def live_registration(session: Session, name: str) -> BaseRegistration | None:
    """That has not ended; there is one at most."""
    query = select(BaseRegistration).where(BaseRegistration.name == name, BaseRegistration.status.in_(LIVE))
    return session.scalars(query).one_or_none()


def recent_registrations(session: Session, *, since: float, limit: int = 50) -> list[BaseRegistration]:
    """Those that have not ended, or ended after `since`; newest first."""
    query = select(BaseRegistration).where(
        or_(BaseRegistration.status.in_(LIVE), BaseRegistration.finished_at > since)
    )
    return list(session.scalars(query.order_by(BaseRegistration.created_at.desc()).limit(limit)))
