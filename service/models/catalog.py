"""Bases that jobs start from."""

from __future__ import annotations

from typing import Any

from sqlalchemy import String, Text
from sqlalchemy.orm import Mapped, mapped_column

from service.models.base import Table


class AlignedBase(Table):
    """A base model that an operator registered. Adapters are valid only on exactly this hash."""

    __tablename__ = "aligned_bases"

    id: Mapped[str] = mapped_column(String(255), primary_key=True)
    """What clients send as `model`; may contain slashes."""
    revision: Mapped[str] = mapped_column(String(255))
    path: Mapped[str] = mapped_column(Text)
    """Folder on the workers; never shown to tenants."""
    sha256: Mapped[str] = mapped_column(String(64))
    alignment_method: Mapped[str] = mapped_column(String(64))
    default_spec: Mapped[dict[str, Any]]
    """`JobSpec` that "auto" hyper-parameters resolve to on this base."""
    safety_profile: Mapped[dict[str, Any]]
    """`SafetyProfile`; operator data, never shown to tenants."""
    created_at: Mapped[float]
    retired_at: Mapped[float | None]
    measurements: Mapped[dict[str, Any] | None]
    """What `autoclave base add` found and measured (docs/bases.md); None if the base was only registered."""
