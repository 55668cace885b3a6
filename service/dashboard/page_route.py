"""Routes that answer a browser: who is signed in is known before a body is read, and errors are pages.

Against forged requests (CSRF), a request that changes something needs the form's token, and must not come
from another site by what the browser says of it (`Sec-Fetch-Site`, else `Origin`; OWASP CSRF Prevention Cheat
Sheet). The cookie is SameSite=Lax besides.
"""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Annotated, Any, ClassVar
from urllib.parse import quote, urlsplit

import structlog
from fastapi import Depends
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import RedirectResponse, Response

from service.dashboard import sessions
from service.dashboard.rendering import error_page
from service.dashboard.sessions import Kind, OperatorCaller, SignedIn
from service.deps import Caller, bounded, request_id
from service.errors import ApiError, forbidden, internal
from service.rates.limiter import Kind as RequestKind
from service.rates.limiter import RateLimiter, refusal
from service.storage import StorageFullError, StorageUnavailableError

log: structlog.stdlib.BoundLogger = structlog.get_logger()

COOKIE = "autoclave_session"
FORM = "application/x-www-form-urlencoded"
SAFE_METHODS = frozenset({"GET", "HEAD"})


class PageRoute(APIRoute):
    """Open to anybody; `UserPage` and `OperatorPage` are not."""

    kind: ClassVar[Kind | None] = None

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def shown(request: Request) -> Response:
            request.state.signed_in = None
            try:
                if request.method not in SAFE_METHODS:
                    require_same_site(request)
                # Also on open pages: they say who is signed in.
                signed_in = await request.state.admissions.run(partial(_recognise, request))
                request.state.signed_in = signed_in
                if signed_in is not None and isinstance(signed_in.caller, Caller):
                    # Where the dependencies of the API's own endpoints look for it.
                    request.state.caller = signed_in.caller
                    structlog.contextvars.bind_contextvars(project_id=signed_in.caller.project_id)
                if (refused := self._turn_away(request, signed_in)) is not None:
                    return refused
                if is_form := request.headers.get("content-type", "").startswith(FORM):
                    # Held in memory, unlike an upload; the handler finds it parsed.
                    request = Request(request.scope, bounded(request.receive))
                    await request.form()
                if signed_in is not None and request.method not in SAFE_METHODS:
                    await _require_token(request, signed_in, is_form=is_form)
                return await handle(request)
            except ClientDisconnect:
                raise
            except Exception as error:
                return error_page(request, _as_api_error(request, error))

        return shown

    def _turn_away(self, request: Request, signed_in: SignedIn | None) -> Response | None:
        """Raises ApiError 403 where somebody else is signed in than the page is for."""
        kind = type(self).kind
        if kind is None:
            return None
        if signed_in is None:
            return _to_sign_in(request)
        if signed_in.kind is not kind:
            whose = "operators" if kind is Kind.OPERATOR else "the holder of a project's key"
            raise forbidden(f"This page is for {whose}. Sign in with such a key.", code="wrong_kind_of_key")
        return None


class UserPage(PageRoute):
    kind = Kind.PROJECT


class OperatorPage(PageRoute):
    kind = Kind.OPERATOR


async def _require_token(request: Request, signed_in: SignedIn, *, is_form: bool) -> None:
    """Raises ApiError 403. An upload is read while it comes: its token is in the URL or a header."""
    given = request.headers.get("x-csrf-token") or request.query_params.get("csrf")
    if given is None and is_form:
        given = str((await request.form()).get("csrf", ""))
    if not hmac.compare_digest((given or "").encode(), signed_in.csrf.encode()):
        raise forbidden(
            "This form is too old, or did not come from this site. Load the page again, then repeat it.",
            code="csrf_failed",
        )


def require_same_site(request: Request) -> None:
    """Raises ApiError 403."""
    site = request.headers.get("sec-fetch-site")
    if site is None:
        origin = request.headers.get("origin")
        if origin is None or urlsplit(origin).netloc == request.headers.get("host"):
            return
    elif site in ("same-origin", "none"):
        return
    raise forbidden("This request came from another site.", code="csrf_failed")


def _recognise(request: Request) -> SignedIn | None:
    """Raises ApiError 429 for a project that asks too often."""
    token = request.cookies.get(COOKIE)
    if not token:
        return None
    address = request.client.host if request.client else None
    with request.state.database.glance() as session:
        signed_in = sessions.find_session(
            session, token, now=time.time(), address=address, request_id=request_id()
        )
    if signed_in is None or not isinstance(signed_in.caller, Caller):
        return signed_in
    limiter: RateLimiter = request.state.rate_limiter
    kind = RequestKind.READ if request.method in SAFE_METHODS else RequestKind.WRITE
    window = limiter.admit(signed_in.caller.project_id, kind)
    if window is not None and not window.allowed:
        raise refusal(window, kind)
    return signed_in


def _to_sign_in(request: Request) -> Response:
    if "hx-request" in request.headers:
        here = urlsplit(request.headers.get("hx-current-url", ""))
        target = f"/signin?next={quote(here.path + ('?' + here.query if here.query else ''))}"
        return Response(status_code=401, headers={"hx-redirect": target})
    if request.method not in SAFE_METHODS:
        raise ApiError(401, "You are signed out. Sign in, then repeat it.", code="signed_out")
    path = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    return RedirectResponse(f"/signin?next={quote(path)}", status_code=303)


def _as_api_error(request: Request, error: Exception) -> ApiError:
    if isinstance(error, ApiError):
        return error
    if isinstance(error, HTTPException):
        return ApiError(error.status_code, str(error.detail))
    if isinstance(error, RequestValidationError):
        fields = ", ".join(".".join(str(part) for part in e["loc"][1:]) for e in error.errors())
        return ApiError(400, f"The form is not filled in right: {fields}.", code="invalid_value")
    if isinstance(error, DBAPIError | PoolTimeoutError | StorageFullError | StorageUnavailableError):
        log.warning("page_unavailable", path=request.url.path, error=type(error).__name__, exc_info=error)
        return ApiError(503, "The server cannot reach its database or storage. Try again soon.")
    log.error("page_failed", path=request.url.path, exc_info=error)
    return internal()


# Asynchronous although they wait for nothing, as in `service.deps`.
async def get_user(request: Request) -> Caller:
    caller = request.state.signed_in.caller
    assert isinstance(caller, Caller), caller
    return caller


async def get_operator(request: Request) -> OperatorCaller:
    caller = request.state.signed_in.caller
    assert isinstance(caller, OperatorCaller), caller
    return caller


UserDep = Annotated[Caller, Depends(get_user)]
OperatorDep = Annotated[OperatorCaller, Depends(get_operator)]
