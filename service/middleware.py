"""What surrounds every request: an id, a log line, limits, and a proper answer when all else failed.

Logs method, path, status and time; never headers, queries or bodies, which hold keys and tenants' data.
"""

from __future__ import annotations

import time

import structlog
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import errors, ids
from service.rates.headers import rate_headers
from service.recent_answers import RecentAnswers

log: structlog.stdlib.BoundLogger = structlog.get_logger()


CLIENT_CLOSED = 499
"""Logged, never sent."""


_LINKS = "/v1/downloads/"


class RequestContext:
    def __init__(self, app: ASGIApp, recent: RecentAnswers) -> None:
        self.app = app
        self._recent = recent

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = ids.request_id()
        started = time.perf_counter()
        status = 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = {
                    "x-request-id": request_id,
                    "openai-processing-ms": str(_milliseconds_since(started)),
                    "openai-version": "2020-10-01",
                    **security_headers(scope),
                }
                if window := scope.get("state", {}).get("rate_window"):
                    headers |= rate_headers(window)
                _add(message["headers"], headers)
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=request_id):
            try:
                if "\0" in scope["path"] or b"%00" in scope["query_string"]:
                    # PostgreSQL stores no NUL: nothing that contains one can be found or filtered for.
                    answer = errors.invalid("The URL contains a NUL character.", param=None)
                    await answer.response()(scope, receive, send_with_headers)
                else:
                    await self.app(scope, receive, send_with_headers)
            except ClientDisconnect:
                # In the middle of its own upload; there is nobody to answer.
                status = CLIENT_CLOSED
            except Exception:
                log.exception("request_failed", method=scope["method"], path=_logged(scope["path"]))
                if status:
                    # The answer has begun: cutting the connection is the only way left to say so.
                    raise
                await errors.internal().response()(scope, receive, send_with_headers)
            finally:
                self._recent.add(scope, status, time.perf_counter() - started)
                log.info(
                    "request",
                    method=scope["method"],
                    path=_logged(scope["path"]),
                    status=status,
                    milliseconds=_milliseconds_since(started),
                    **_job_of(scope),
                )


def _job_of(scope: Scope) -> dict[str, str]:
    """So that a search for a job finds the requests about it; as it stands in the path."""
    job_id = scope.get("path_params", {}).get("job_id")
    return {} if job_id is None else {"job_id": job_id}


def _logged(path: str) -> str:
    """A download link is a permission: whoever reads the log must not be able to use it."""
    return f"{_LINKS}***" if path.startswith(_LINKS) else path


def security_headers(scope: Scope) -> dict[str, str]:
    """What keeps a browser from doing more with an answer than showing or saving it. A page may need scripts
    and styles, and what may be cached differs: an answer that says so itself keeps its own words."""
    headers = {
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "x-frame-options": "DENY",
        "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    }
    if scope["path"].startswith("/v1/"):
        headers["cache-control"] = "no-store"
    if scope["scheme"] == "https":
        headers["strict-transport-security"] = "max-age=31536000"
    caller = scope.get("state", {}).get("caller")
    if caller is not None:
        headers["openai-organization"] = caller.organization_id
    return headers


_OWN_WORDS = {b"content-security-policy", b"cache-control"}


def _add(raw: list[tuple[bytes, bytes]], headers: dict[str, str]) -> None:
    """In place, and in one go: looking each header up first takes longer than all the rest here."""
    present = {name.lower() for name, _ in raw}
    for name, value in headers.items():
        key = name.encode("latin-1")
        if key in present:
            if key in _OWN_WORDS:
                continue
            raw[:] = [pair for pair in raw if pair[0].lower() != key]
        raw.append((key, value.encode("latin-1")))


def _milliseconds_since(started: float) -> int:
    return round((time.perf_counter() - started) * 1000)
