"""How long the last answers of this process took, by what was asked for; in memory only.

What is kept is a time, a duration and a status. Figures over all processes and days are those of /metrics.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from enum import StrEnum

from starlette.types import Scope

KEPT = 2000
"""Answers of each class."""
WINDOW_SECONDS = 15 * 60.0


class Asked(StrEnum):
    """Classes of requests that cost about the same, so that a percentile means something."""

    READ = "API, reading"
    WRITE = "API, changing"
    UPLOAD = "API, sending and downloading files"
    PAGE = "pages"
    LIVE = "live parts of pages"


@dataclass(frozen=True)
class Figures:
    """Of one class, over the window: at most `KEPT` answers. Percent of all answers, milliseconds."""

    asked: Asked
    number: int
    p50: float
    p95: float
    server_errors: float
    refused_for_rate: float
    other_client_errors: float


class RecentAnswers:
    """Adding is one append, safe in any thread."""

    def __init__(self) -> None:
        self._kept: dict[Asked, deque[tuple[float, float, int]]] = {
            asked: deque(maxlen=KEPT) for asked in Asked
        }

    def add(self, scope: Scope, status: int, seconds: float) -> None:
        asked = class_of(scope["method"], scope["path"])
        if asked is not None:
            self._kept[asked].append((time.monotonic(), seconds, status))

    def figures(self) -> list[Figures]:
        """Of the classes that were asked for in the window."""
        since = time.monotonic() - WINDOW_SECONDS
        found = []
        for asked, kept in self._kept.items():
            rows = [row for row in list(kept) if row[0] >= since]
            if rows:
                found.append(_figures(asked, rows))
        return found


def _figures(asked: Asked, rows: list[tuple[float, float, int]]) -> Figures:
    took = sorted(seconds for _, seconds, _ in rows)
    statuses = [status for _, _, status in rows]

    def share(number: int) -> float:
        return 100 * number / len(rows)

    # Status 0: the client was gone before there was an answer; nobody's error.
    refused = statuses.count(429)
    client = sum(400 <= status < 500 for status in statuses) - refused
    return Figures(
        asked=asked,
        number=len(rows),
        p50=1000 * took[len(took) // 2],
        p95=1000 * took[min(len(took) - 1, int(0.95 * len(took)))],
        server_errors=share(sum(status >= 500 for status in statuses)),
        refused_for_rate=share(refused),
        other_client_errors=share(client),
    )


def class_of(method: str, path: str) -> Asked | None:
    """None for what would say nothing: probes, static files, and events, which may be streams that last as
    long as they are watched."""
    if path.startswith("/v1/"):
        return _of_the_api(method, path)
    if path == "/" or path.startswith(("/app", "/dashboard", "/signin")):
        return Asked.LIVE if path.endswith("/live") else Asked.PAGE
    return None


def _of_the_api(method: str, path: str) -> Asked | None:
    if path.endswith("/events"):
        return None
    if method in ("GET", "HEAD"):
        is_large = (
            path.startswith("/v1/downloads/")
            or path.endswith(("/content", "/adapter"))
            or "/adapter/files/" in path
        )
        return Asked.UPLOAD if is_large else Asked.READ
    is_large = path == "/v1/files" or path.endswith(("/parts", "/complete"))
    return Asked.UPLOAD if is_large and method == "POST" else Asked.WRITE
