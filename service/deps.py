"""What endpoints ask for: who is calling, the database, the storage.

A request authenticates before its body is read (`AuthenticatedRoute`, `AdminRoute`), in a transaction of
its own, so that a request that waits for its body or for a thread holds neither a lock nor a connection.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, ClassVar, TypedDict

import structlog
from anyio import CapacityLimiter
from fastapi import Depends, Request
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Message, Receive

from service import auth
from service.audit.log import Actor, Trail
from service.db import Database
from service.errors import forbidden, unauthorized
from service.jobs.feed import EventFeed
from service.models import AdminKey, ApiKey
from service.pace import Pace
from service.rates.limiter import Kind, RateLimiter, kind_of, refusal
from service.rates.window import Window
from service.scopes import SCOPES_OF_ROLE, Role, Scope, needed
from service.settings import Settings
from service.storage import Storage
from service.together import Together

MAX_JSON_BYTES = 1024 * 1024


class State(TypedDict):
    """What the lifespan builds and every request finds in `request.state`."""

    settings: Settings
    database: Database
    storage: Storage
    upload_threads: CapacityLimiter
    event_feed: EventFeed
    inspection_threads: CapacityLimiter
    rate_limiter: RateLimiter
    admissions: Together
    """Recognises keys and counts requests."""
    pace: Pace
    """How often open pages ask."""


@dataclass(frozen=True)
class Caller:
    """Who holds a project's key."""

    project_id: str
    organization_id: str
    actor: Actor
    """For the audit log."""
    scopes: frozenset[str] = frozenset(Scope)

    @property
    def trail(self) -> Trail:
        return Trail(self.actor, self.organization_id, self.project_id)


@dataclass(frozen=True)
class AdminCaller:
    """Who holds an organization's admin key."""

    organization_id: str
    actor: Actor
    scopes: frozenset[str]

    def trail(self, project_id: str | None) -> Trail:
        """`project_id` is that of what is changed."""
        return Trail(self.actor, self.organization_id, project_id)


def authenticate(database: Database, authorization: str | None, *, address: str | None, now: float) -> Caller:
    """Raises ApiError 401, the same for every cause, or 403 for an admin key."""
    caller = _holder(database, authorization, address=address, now=now)
    if isinstance(caller, AdminCaller):
        raise forbidden(
            "This is an admin key; it reads no project's data. Send a key of a project.",
            code="project_key_required",
        )
    return caller


def authenticate_admin(
    database: Database, authorization: str | None, *, address: str | None, now: float
) -> AdminCaller:
    """Raises ApiError 401, the same for every cause, or 403 for a project's key."""
    caller = _holder(database, authorization, address=address, now=now)
    if isinstance(caller, Caller):
        raise forbidden(
            "This needs an admin key (sk-admin-...) of the organization; your operator makes one with: "
            "autoclave admin create-admin-key",
            code="admin_key_required",
        )
    return caller


def _holder(
    database: Database, authorization: str | None, *, address: str | None, now: float
) -> Caller | AdminCaller:
    scheme, _, key = (authorization or "").partition(" ")
    key = key.strip()
    if scheme.lower() != "bearer" or not key:
        raise unauthorized()
    row: ApiKey | AdminKey | None
    caller: Caller | AdminCaller
    with database.glance() as session:
        if key.startswith(auth.ADMIN_PREFIX):
            row = admin = auth.find_admin_key(session, key, now=now)
            if admin is None:
                raise unauthorized()
            actor = Actor(admin.id, address, request_id())
            caller = AdminCaller(admin.organization_id, actor, frozenset(SCOPES_OF_ROLE[Role(admin.role)]))
        else:
            found = auth.find_api_key(session, key, now=now)
            if found is None:
                raise unauthorized()
            row, project = found
            scopes = frozenset(Scope) if row.scopes is None else frozenset(row.scopes)
            actor = Actor(row.id, address, request_id())
            caller = Caller(project.id, project.organization_id, actor, scopes)
    assert row is not None
    if auth.is_use_due(row, now=now):
        with database.transaction() as session:
            auth.record_use(session, row, now=now)
    return caller


def _admit(
    request: Request, identify: Callable[..., Caller | AdminCaller], kind: Kind
) -> tuple[Caller | AdminCaller, Window | None]:
    """Raises ApiError 401 and 403, or 429 for one wrong key too many."""
    limiter: RateLimiter = request.state.rate_limiter
    authorization = request.headers.get("authorization")
    address = request.client.host if request.client else None
    with limiter.watching(address, authorization):
        caller = identify(request.state.database, authorization, address=address, now=time.time())
    subject = caller.project_id if isinstance(caller, Caller) else caller.organization_id
    return caller, limiter.admit(subject, kind)


def request_id() -> str | None:
    """As `service.middleware` bound it."""
    value: str | None = structlog.contextvars.get_contextvars().get("request_id")
    return value


def actor_of(request: Request, name: str) -> Actor:
    """For the audit log: `name` acts by this request."""
    return Actor(name, request.client.host if request.client else None, request_id())


class _KeyRoute(APIRoute):
    """Knows who is calling before anything reads the body, and bounds a body that is held in memory.

    FastAPI parses a body before it runs dependencies, so a dependency would come too late.
    """

    identify: ClassVar[Callable[..., Caller | AdminCaller]]
    """`authenticate` or `authenticate_admin`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        identify = type(self).identify

        async def authenticated(request: Request) -> Response:
            kind = kind_of(request.method, self.path)
            together: Together = request.state.admissions
            caller, window = await together.run(partial(_admit, request, identify, kind))
            request.state.caller = caller
            if isinstance(caller, Caller):
                structlog.contextvars.bind_contextvars(project_id=caller.project_id)
            request.state.rate_window = window  # for the headers of the answer (`service.middleware`)
            if window is not None and not window.allowed:
                raise refusal(window, kind)
            self._require_scope(request.method, caller.scopes)
            if self.body_field is not None:
                request = Request(request.scope, bounded(request.receive))
            return await handle(request)

        return authenticated

    def _require_scope(self, method: str, scopes: frozenset[str]) -> None:
        """Raises ApiError 403."""
        scope = needed(method, self.path_format)
        if scope not in scopes:
            raise forbidden(
                f"This key lacks the scope {scope.value!r}, which {method} on this URL needs.",
                code="insufficient_scope",
            )


class AuthenticatedRoute(_KeyRoute):
    """For keys of projects."""

    identify = staticmethod(authenticate)


class AdminRoute(_KeyRoute):
    """For admin keys."""

    identify = staticmethod(authenticate_admin)


def bounded(receive: Receive) -> Receive:
    """Raises HTTPException 413 for more than MAX_JSON_BYTES."""
    num_bytes = 0

    async def counted() -> Message:
        nonlocal num_bytes
        message = await receive()
        num_bytes += len(message.get("body", b""))
        if num_bytes > MAX_JSON_BYTES:
            # Not an ApiError: FastAPI turns everything else that reading a body raises into a 400.
            raise HTTPException(413, f"The request body is larger than {MAX_JSON_BYTES} bytes.")
        return message

    return counted


# Asynchronous although they wait for nothing: FastAPI would give a plain function a thread.
async def get_caller(request: Request) -> Caller:
    caller: Caller = request.state.caller
    return caller


async def get_admin(request: Request) -> AdminCaller:
    caller: AdminCaller = request.state.caller
    return caller


async def get_database(request: Request) -> Database:
    """For one `transaction()` (or `snapshot()`, to read) around an endpoint's whole work.

    Not a session: one that a dependency opens stays open while FastAPI waits for a thread to
    serialise the response, and holds its lock and its connection meanwhile. With every thread
    waiting for that lock, none is left for its holder (tests/service/test_openai_client.py,
    test_many_clients_at_once). A block in the endpoint ends in the thread in which it began, and
    has committed before there is a response.
    """
    database: Database = request.state.database
    return database


async def get_storage(request: Request) -> Storage:
    storage: Storage = request.state.storage
    return storage


CallerDep = Annotated[Caller, Depends(get_caller)]
AdminDep = Annotated[AdminCaller, Depends(get_admin)]
DatabaseDep = Annotated[Database, Depends(get_database)]
StorageDep = Annotated[Storage, Depends(get_storage)]
