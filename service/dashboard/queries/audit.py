"""The audit log of all organizations."""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.audit.repository import AuditFilters, list_entries
from service.db import Database
from service.models import AuditEntry

ENTRIES_AT_ONCE = 1000


def sequence_of(session: Session, entry_id: str) -> int | None:
    return session.scalar(select(AuditEntry.sequence).where(AuditEntry.id == entry_id))


def actions(session: Session) -> list[str]:
    """All that occur. One step of an index each: a log has millions of entries and dozens of actions."""
    found: list[str] = []
    query = select(AuditEntry.action).order_by(AuditEntry.action).limit(1)
    action = session.scalar(query)
    while action is not None:
        found.append(action)
        action = session.scalar(query.where(AuditEntry.action > action))
    return found


def all_entries(database: Database, filters: AuditFilters, *, limit: int) -> Iterator[AuditEntry]:
    """Newest first, at most `limit`. A thousand at a time, so that no transaction lasts as long as a
    download; the log only grows at its other end."""
    after: int | None = None
    while limit > 0:
        with database.snapshot() as session:
            size = min(limit, ENTRIES_AT_ONCE)
            entries, has_more = list_entries(session, filters, limit=size, after=after)
        yield from entries
        if not has_more or not entries:
            return
        after, limit = entries[-1].sequence, limit - len(entries)
