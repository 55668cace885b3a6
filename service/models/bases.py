"""Registrations of bases: what an admin key asked a worker to check, measure and put into the catalogue."""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, ForeignKey, Index, Integer, String, Text, text
from sqlalchemy.orm import Mapped, mapped_column

from service.models.base import Table

_LIVE = text("status IN ('queued', 'running')")


class BaseRegistration(Table):
    """Carried out by a worker between jobs (`workers.bases.taking`). Times are seconds since the epoch."""

    __tablename__ = "base_registrations"
    __table_args__ = (
        Index("ix_base_registrations_listing", "created_at", "id"),
        # One at a time for a name, whichever requests race.
        Index(
            "ix_base_registrations_live_name",
            "name",
            unique=True,
            postgresql_where=_LIVE,
            sqlite_where=_LIVE,
        ),
        Index(
            "ix_base_registrations_live", "status", "created_at", postgresql_where=_LIVE, sqlite_where=_LIVE
        ),
    )

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    organization_id: Mapped[str] = mapped_column(ForeignKey("organizations.id"))
    """Of the admin key. The base is everybody's."""
    created_by: Mapped[str] = mapped_column(String(64))
    """Id of the admin key."""
    request_id: Mapped[str | None] = mapped_column(String(64))
    created_at: Mapped[float]

    name: Mapped[str] = mapped_column(String(255))
    source: Mapped[str] = mapped_column(Text)
    """An absolute folder of the workers, or owner/name on the model hub."""
    revision: Mapped[str | None] = mapped_column(String(255))
    profile: Mapped[dict[str, Any] | None]
    """`SafetyProfile`; null until the worker has read `profile_file`."""
    profile_file: Mapped[str | None] = mapped_column(Text)
    profile_of: Mapped[str | None] = mapped_column(String(255))
    """The base whose profile this is: an operator's own, so its paths and judges are not asked again."""
    spec: Mapped[dict[str, Any]]
    template: Mapped[str | None] = mapped_column(String(64))
    store: Mapped[str | None] = mapped_column(Text)
    alignment_method: Mapped[str | None] = mapped_column(String(64))
    device: Mapped[str | None] = mapped_column(String(16))
    worker_class: Mapped[str | None] = mapped_column(String(63))
    """Null: any worker."""

    status: Mapped[str] = mapped_column(String(16))
    """`service.bases.states.RegistrationStatus`"""
    started_at: Mapped[float | None]
    finished_at: Mapped[float | None]
    cancel_requested_at: Mapped[float | None]
    rung_at: Mapped[float | None]
    """When a worker was last rung for. Null: it has to be done now."""
    lease_owner: Mapped[str | None] = mapped_column(String(255))
    lease_expires_at: Mapped[float | None]
    heartbeat_at: Mapped[float | None]
    fencing_number: Mapped[int] = mapped_column(BigInteger, default=0)
    attempt_count: Mapped[int] = mapped_column(Integer, default=0)
    progress: Mapped[dict[str, Any] | None]
    """`{"doing", "step", "total_steps", "seconds_remaining"}`"""
    notes: Mapped[list[Any] | None]
    """What the command would have said on its way: sentences."""
    error_code: Mapped[str | None] = mapped_column(String(64))
    error_message: Mapped[str | None] = mapped_column(Text)
    sha256: Mapped[str | None] = mapped_column(String(64))
    """Of the weights, once they are registered."""
    log_tail: Mapped[str | None] = mapped_column(Text)
    """Last lines of the child's log, for operators alone."""
