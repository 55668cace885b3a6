"""Who is signed in: a cookie with 256 random bits, of which the database keeps the SHA-256.

A session stands for the key it began with and ends with it: revoking or expiry of the key ends the session
at the next request. Forms carry a token made from the cookie, which no other site can read.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import Float, Select, and_, bindparam, delete, select
from sqlalchemy.orm import Session

from service import auth, operators
from service.audit.log import Actor
from service.auth import digest
from service.deps import Caller
from service.models import ApiKey, OperatorKey, Project, WebSession
from service.scopes import Scope


class Kind(StrEnum):
    PROJECT = "project"
    OPERATOR = "operator"


@dataclass(frozen=True)
class OperatorCaller:
    """Who holds an operator key."""

    actor: Actor
    """For the audit log."""


@dataclass(frozen=True)
class SignedIn:
    caller: Caller | OperatorCaller
    key_name: str
    key_prefix: str
    csrf: str
    """What forms send back."""
    expires_at: float

    @property
    def kind(self) -> Kind:
        return Kind.PROJECT if isinstance(self.caller, Caller) else Kind.OPERATOR


def sign_in(session: Session, key: str, *, now: float, ttl_seconds: float) -> tuple[str, Kind] | None:
    """The cookie's value; None for a key that is wrong, expired, revoked, or opens no page (an admin key)."""
    if key.startswith(auth.OPERATOR_PREFIX):
        operator = operators.find_operator_key(session, key, now=now)
        if operator is None:
            return None
        kind, key_id, key_expires_at = Kind.OPERATOR, operator.id, operator.expires_at
        auth.record_use(session, operator, now=now)
    else:
        found = auth.find_api_key(session, key, now=now)
        if found is None:
            return None
        kind, key_id, key_expires_at = Kind.PROJECT, found[0].id, found[0].expires_at
        auth.record_use(session, found[0], now=now)
    token = secrets.token_urlsafe(32)
    expires_at = min(now + ttl_seconds, key_expires_at or float("inf"))
    session.add(
        WebSession(
            token_sha256=digest(token), kind=kind.value, key_id=key_id, created_at=now, expires_at=expires_at
        )
    )
    session.execute(delete(WebSession).where(WebSession.expires_at <= now))
    session.flush()
    return token, kind


def find_session(
    session: Session, token: str, *, now: float, address: str | None, request_id: str | None
) -> SignedIn | None:
    """None for a session that ended, and for one whose key did."""
    row = session.execute(_BY_TOKEN, {"token_sha256": digest(token), "now": now}).first()
    if row is None:
        return None
    actor = Actor(row.key_id, address, request_id)
    caller: Caller | OperatorCaller
    if row.operator_name is not None:
        caller, name, prefix = OperatorCaller(actor), row.operator_name, row.operator_prefix
    elif row.project_id is not None:
        scopes = frozenset(Scope) if row.scopes is None else frozenset(row.scopes)
        caller = Caller(row.project_id, row.organization_id, actor, scopes)
        name, prefix = row.name, row.prefix
    else:
        return None
    return SignedIn(caller, name, prefix, csrf_token(token), row.expires_at)


def sign_out(session: Session, token: str) -> None:
    session.execute(delete(WebSession).where(WebSession.token_sha256 == digest(token)))


def csrf_token(token: str) -> str:
    return hmac.new(token.encode(), b"csrf", hashlib.sha256).hexdigest()


def _by_token() -> Select[Any]:
    """The session and the key behind it, of whichever kind, if both live."""
    now = bindparam("now", type_=Float)
    its_operator = and_(
        WebSession.kind == Kind.OPERATOR.value,
        OperatorKey.id == WebSession.key_id,
        auth.is_live(OperatorKey, now=now),
    )
    its_key = and_(
        WebSession.kind == Kind.PROJECT.value,
        ApiKey.id == WebSession.key_id,
        auth.is_live(ApiKey, now=now),
    )
    return (
        select(
            WebSession.key_id,
            WebSession.expires_at,
            OperatorKey.name.label("operator_name"),
            OperatorKey.prefix.label("operator_prefix"),
            ApiKey.name,
            ApiKey.prefix,
            ApiKey.scopes,
            Project.id.label("project_id"),
            Project.organization_id,
        )
        .select_from(WebSession)
        .outerjoin(OperatorKey, its_operator)
        .outerjoin(ApiKey, its_key)
        .outerjoin(Project, Project.id == ApiKey.project_id)
        .where(WebSession.token_sha256 == bindparam("token_sha256"), WebSession.expires_at > now)
    )


_BY_TOKEN = _by_token()
"""Built once: every request of every open page asks it."""
