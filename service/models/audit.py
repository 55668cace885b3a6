"""Who did what."""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, Index, Integer, String
from sqlalchemy.orm import Mapped, mapped_column

from service.models.base import Table


class AuditEntry(Table):
    """Who did what, and when. Triggers of the database refuse to change or delete a row. No foreign keys:
    an entry outlives what it names."""

    __tablename__ = "audit_entries"
    __table_args__ = (
        Index("ix_audit_entries_listing", "organization_id", "sequence"),
        Index("ix_audit_entries_object", "object_id", "sequence"),
        Index("ix_audit_entries_project", "project_id", "sequence"),
        Index("ix_audit_entries_action", "action", "sequence"),
        Index("ix_audit_entries_actor", "actor", "sequence"),
    )

    sequence: Mapped[int] = mapped_column(
        BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True
    )
    id: Mapped[str] = mapped_column(String(64), unique=True)
    created_at: Mapped[float]
    organization_id: Mapped[str | None] = mapped_column(String(64))
    """Null for deeds that concern the whole server, such as registering a base."""
    project_id: Mapped[str | None] = mapped_column(String(64))
    actor: Mapped[str] = mapped_column(String(128))
    """A key's id, `operator:<login>` or `system` (`service.audit.log.Actor`)."""
    address: Mapped[str | None] = mapped_column(String(64))
    request_id: Mapped[str | None] = mapped_column(String(64))
    action: Mapped[str] = mapped_column(String(64))
    object_id: Mapped[str] = mapped_column(String(512))
    details: Mapped[dict[str, Any]]
