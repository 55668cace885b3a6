"""Keys of operators: make, recognise, revoke. They open the operator's pages and nothing else.

An operator sees all organizations, so no key of an organization opens those pages. As with other keys
(`service.auth`), 256 random bits are recognised by their SHA-256, and the secret is shown once.
"""

from __future__ import annotations

import secrets

from sqlalchemy import select
from sqlalchemy.orm import Session

from service import ids
from service.audit.log import SYSTEM, Actor, record
from service.auth import OPERATOR_PREFIX, UnknownIdError, digest, is_live
from service.models import OperatorKey

PREFIX_LENGTH = len(OPERATOR_PREFIX) + 5


def create_operator_key(
    session: Session,
    *,
    name: str,
    now: float,
    expires_at: float | None = None,
    is_default: bool = False,
    actor: Actor = SYSTEM,
) -> tuple[OperatorKey, str]:
    """The row and the key itself, which cannot be read again."""
    key = f"{OPERATOR_PREFIX}{secrets.token_urlsafe(32)}"
    row = OperatorKey(
        id=ids.operator_key_id(),
        name=name,
        prefix=key[:PREFIX_LENGTH],
        secret_sha256=digest(key),
        created_at=now,
        expires_at=expires_at,
        is_default=is_default,
    )
    session.add(row)
    session.flush()
    _record(session, actor, "operator_key.created", row, now=now)
    return row, key


def revoke_operator_key(session: Session, *, key_id: str, now: float, actor: Actor = SYSTEM) -> OperatorKey:
    """Ends its sessions too, with their next request. Revoking twice keeps the first time.
    Raises UnknownIdError."""
    row = session.get(OperatorKey, key_id)
    if row is None:
        raise UnknownIdError(f"there is no operator key {key_id!r}")
    if row.revoked_at is None:
        row.revoked_at = now
        session.flush()
        _record(session, actor, "operator_key.deleted", row, now=now)
    return row


def find_operator_key(session: Session, key: str, *, now: float) -> OperatorKey | None:
    """None for a wrong, expired or revoked key alike."""
    query = select(OperatorKey).where(OperatorKey.secret_sha256 == digest(key), is_live(OperatorKey, now=now))
    return session.scalars(query).one_or_none()


def live_default_operator_keys(session: Session, *, now: float) -> list[OperatorKey]:
    """Those that `autoclave up` made by itself and that are still valid."""
    query = select(OperatorKey).where(OperatorKey.is_default, is_live(OperatorKey, now=now))
    return list(session.scalars(query))


def _record(session: Session, actor: Actor, action: str, row: OperatorKey, *, now: float) -> None:
    record(
        session,
        actor,
        action,
        row.id,
        organization_id=None,
        project_id=None,
        now=now,
        expires_at=row.expires_at,
    )
