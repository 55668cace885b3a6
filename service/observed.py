"""Around everything else that happens to a request: it is counted, timed and, if traces are on, a span.

Trace headers of clients are not believed: whoever may send a request could otherwise write into another's
trace and decide what is sampled.
"""

from __future__ import annotations

import time
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.metrics.api import NO_ROUTE, ApiMetrics
from service.tracing import Tracer

_UNTRACED = ("/healthz", "/readyz")


class Observed:
    def __init__(self, app: ASGIApp, metrics: ApiMetrics, tracer: Tracer) -> None:
        self.app = app
        self._metrics = metrics
        self._tracer = tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if scope["path"] in _UNTRACED:
            await self._counted(scope, receive, send)
            return
        with self._tracer.span(f"{scope['method']} {NO_ROUTE}", kind="server") as span:
            status = await self._counted(scope, receive, send)
            span.rename(f"{scope['method']} {route_of(scope) or NO_ROUTE}")
            span.set({"http.response.status_code": status})
            if status >= 500:
                span.fail(f"status {status}")

    async def _counted(self, scope: Scope, receive: Receive, send: Send) -> int:
        started = time.perf_counter()
        status = 0

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, noting)
        finally:
            seconds = time.perf_counter() - started
            self._metrics.answered(
                method=scope["method"], route=route_of(scope), status=status, seconds=seconds
            )
        return status


def route_of(scope: Scope) -> str | None:
    """The template of the route that answered, from the root; None if none did."""
    # FastAPI keeps routes below the router that they were written in; the route itself has no prefix then.
    effective: Any = scope.get("fastapi", {}).get("effective_route_context")
    template: str | None = getattr(effective or scope.get("route"), "path", None)
    return template
