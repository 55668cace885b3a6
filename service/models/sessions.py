"""Keys of operators, and who is signed in to the pages."""

from __future__ import annotations

from sqlalchemy import String, false
from sqlalchemy.orm import Mapped, mapped_column

from service.models.base import Table


class OperatorKey(Table):
    """For the operator's pages (`service.dashboard`); the API knows no such key."""

    __tablename__ = "operator_keys"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str] = mapped_column(String(255))
    prefix: Mapped[str] = mapped_column(String(24))
    """First characters of the key, to tell keys apart."""
    secret_sha256: Mapped[str] = mapped_column(String(64), unique=True)
    created_at: Mapped[float]
    last_used_at: Mapped[float | None]
    revoked_at: Mapped[float | None]
    expires_at: Mapped[float | None]
    is_default: Mapped[bool] = mapped_column(default=False, server_default=false())
    """As of `ApiKey`."""


class WebSession(Table):
    """Somebody who signed in with a key. The session ends with the key: whoever asks looks at both."""

    __tablename__ = "web_sessions"

    token_sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    """Of the cookie, which is never stored."""
    kind: Mapped[str] = mapped_column(String(16))
    """`service.dashboard.sessions.Kind`"""
    key_id: Mapped[str] = mapped_column(String(64))
    """Of an `ApiKey` or an `OperatorKey`."""
    created_at: Mapped[float]
    expires_at: Mapped[float] = mapped_column(index=True)
