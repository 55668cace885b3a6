"""Tenants and their keys: make, recognise, revoke. What a request may do with one is in `deps` and `scopes`.

A key is 256 random bits, so a plain SHA-256 is enough to recognise it (slow hashes are for passwords);
the secret itself exists only in the answer of the function that made it. There is no built-in key.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Sequence

from sqlalchemy import BindParameter, ColumnElement, Float, and_, bindparam, or_, select, update
from sqlalchemy.orm import Session

from autoclave.errors import InputError
from service import ids
from service.audit.log import SYSTEM, Actor, record
from service.models import AdminKey, ApiKey, OperatorKey, Organization, Project
from service.scopes import Role, Scope

PREFIX_LENGTH = 8
ADMIN_PREFIX = "sk-admin-"
OPERATOR_PREFIX = "sk-operator-"
ADMIN_PREFIX_LENGTH = len(ADMIN_PREFIX) + 5
USE_RECORDED_EVERY_SECONDS = 60.0


class UnknownIdError(InputError):
    """An operator named an organization, project or key that does not exist."""

    code = "not_found"


def create_organization(session: Session, *, name: str, now: float, actor: Actor = SYSTEM) -> Organization:
    organization = Organization(id=ids.organization_id(), name=name, created_at=now)
    session.add(organization)
    session.flush()
    record(
        session,
        actor,
        "organization.created",
        organization.id,
        organization_id=organization.id,
        project_id=None,
        now=now,
    )
    return organization


def create_project(
    session: Session, *, organization_id: str, name: str, now: float, actor: Actor = SYSTEM
) -> Project:
    """Raises UnknownIdError."""
    _require_organization(session, organization_id)
    project = Project(id=ids.project_id(), organization_id=organization_id, name=name, created_at=now)
    session.add(project)
    session.flush()
    record(
        session,
        actor,
        "project.created",
        project.id,
        organization_id=organization_id,
        project_id=project.id,
        now=now,
    )
    return project


def create_api_key(
    session: Session,
    *,
    project_id: str,
    name: str,
    now: float,
    scopes: Sequence[Scope] | None = None,
    expires_at: float | None = None,
    is_default: bool = False,
    actor: Actor = SYSTEM,
) -> tuple[ApiKey, str]:
    """The row and the key itself, which cannot be read again. `scopes` None: all of them.
    Raises UnknownIdError."""
    project = session.get(Project, project_id)
    if project is None:
        raise UnknownIdError(f"there is no project {project_id!r}")
    key = f"sk-{secrets.token_urlsafe(32)}"
    while key.startswith((ADMIN_PREFIX, OPERATOR_PREFIX)):  # one in 2**36
        key = f"sk-{secrets.token_urlsafe(32)}"
    row = ApiKey(
        id=ids.api_key_id(),
        project_id=project_id,
        name=name,
        prefix=key[:PREFIX_LENGTH],
        secret_sha256=digest(key),
        created_at=now,
        expires_at=expires_at,
        scopes=None if scopes is None else sorted({scope.value for scope in scopes}),
        is_default=is_default,
    )
    session.add(row)
    session.flush()
    record(
        session,
        actor,
        "api_key.created",
        row.id,
        organization_id=project.organization_id,
        project_id=project_id,
        now=now,
        scopes=row.scopes,
        expires_at=expires_at,
    )
    return row, key


def create_admin_key(
    session: Session,
    *,
    organization_id: str,
    name: str,
    now: float,
    role: Role = Role.OWNER,
    expires_at: float | None = None,
    actor: Actor = SYSTEM,
) -> tuple[AdminKey, str]:
    """As `create_api_key`. Raises UnknownIdError."""
    _require_organization(session, organization_id)
    key = f"{ADMIN_PREFIX}{secrets.token_urlsafe(32)}"
    row = AdminKey(
        id=ids.admin_key_id(),
        organization_id=organization_id,
        name=name,
        role=role.value,
        prefix=key[:ADMIN_PREFIX_LENGTH],
        secret_sha256=digest(key),
        created_at=now,
        expires_at=expires_at,
    )
    session.add(row)
    session.flush()
    record(
        session,
        actor,
        "admin_api_key.created",
        row.id,
        organization_id=organization_id,
        project_id=None,
        now=now,
        role=row.role,
        expires_at=expires_at,
    )
    return row, key


def revoke_api_key(session: Session, *, key_id: str, now: float, actor: Actor = SYSTEM) -> ApiKey:
    """Takes effect with the next request. Revoking twice keeps the first time. Raises UnknownIdError."""
    row = session.get(ApiKey, key_id)
    if row is None:
        raise UnknownIdError(f"there is no API key {key_id!r}")
    if row.revoked_at is None:
        row.revoked_at = now
        session.flush()
        project = session.get_one(Project, row.project_id)
        record(
            session,
            actor,
            "api_key.deleted",
            row.id,
            organization_id=project.organization_id,
            project_id=project.id,
            now=now,
        )
    return row


def revoke_admin_key(session: Session, *, key_id: str, now: float, actor: Actor = SYSTEM) -> AdminKey:
    """As `revoke_api_key`."""
    row = session.get(AdminKey, key_id)
    if row is None:
        raise UnknownIdError(f"there is no admin key {key_id!r}")
    if row.revoked_at is None:
        row.revoked_at = now
        session.flush()
        record(
            session,
            actor,
            "admin_api_key.deleted",
            row.id,
            organization_id=row.organization_id,
            project_id=None,
            now=now,
        )
    return row


def find_api_key(session: Session, key: str, *, now: float | None = None) -> tuple[ApiKey, Project] | None:
    """The valid key's row and its project; None for a wrong, expired or revoked key alike.

    The comparison runs in the database over SHA-256 digests: how long it takes tells nothing about
    a key that hashes to something else.
    """
    now = time.time() if now is None else now
    row = session.execute(_BY_SECRET, {"secret_sha256": digest(key), "now": now}).first()
    return None if row is None else (row[0], row[1])


def find_admin_key(session: Session, key: str, *, now: float) -> AdminKey | None:
    query = select(AdminKey).where(AdminKey.secret_sha256 == digest(key), is_live(AdminKey, now=now))
    return session.scalars(query).one_or_none()


def is_live(
    table: type[ApiKey | AdminKey | OperatorKey], *, now: float | BindParameter[float]
) -> ColumnElement[bool]:
    """Neither revoked nor expired."""
    return and_(table.revoked_at.is_(None), or_(table.expires_at.is_(None), table.expires_at > now))


def key_is_live(session: Session, key_id: str, *, now: float) -> bool:
    """Whether a request with this key of a project would be let in now."""
    query = select(ApiKey.id).where(ApiKey.id == key_id, is_live(ApiKey, now=now))
    return session.scalars(query).first() is not None


def is_use_due(key: ApiKey | AdminKey | OperatorKey, *, now: float) -> bool:
    """Whether `last_used_at` is old enough to be written again: not every read should cost a write."""
    return key.last_used_at is None or key.last_used_at < now - USE_RECORDED_EVERY_SECONDS


def record_use(session: Session, key: ApiKey | AdminKey | OperatorKey, *, now: float) -> None:
    table = type(key)
    session.execute(update(table).where(table.id == key.id).values(last_used_at=now))


def live_default_keys(session: Session, *, now: float) -> list[ApiKey]:
    """Keys that `autoclave up` made by itself and that are still valid."""
    return list(session.scalars(select(ApiKey).where(ApiKey.is_default, is_live(ApiKey, now=now))))


def _require_organization(session: Session, organization_id: str) -> None:
    if session.get(Organization, organization_id) is None:
        raise UnknownIdError(f"there is no organization {organization_id!r}")


def digest(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


# Built once: every request asks it, and building it takes as long as running it.
_BY_SECRET = (
    select(ApiKey, Project)
    .join(Project, Project.id == ApiKey.project_id)
    .where(
        ApiKey.secret_sha256 == bindparam("secret_sha256"),
        is_live(ApiKey, now=bindparam("now", type_=Float)),
    )
)
