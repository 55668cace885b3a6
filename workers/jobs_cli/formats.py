"""How numbers, times and texts from the server are written."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

UNKNOWN = "-"


def clean(text: str) -> str:
    """Without what a terminal would obey: texts come from whoever made the job or the server."""
    return "".join(char if char.isprintable() or char in "\n\t" else "?" for char in text)


def moment(seconds: float | None) -> str:
    """UTC, of seconds since the epoch."""
    return UNKNOWN if seconds is None else f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}"


def clock(seconds: float) -> str:
    """UTC without the day, of seconds since the epoch."""
    return f"{datetime.fromtimestamp(seconds, UTC):%H:%M:%S}"


def duration(seconds: float) -> str:
    """`42 s`, `3:07 min`, `2:15 h`."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d} min"
    return f"{whole // 3600}:{whole % 3600 // 60:02d} h"


def size(num_bytes: float) -> str:
    for unit in ("B", "kB", "MB"):
        if num_bytes < 1000:
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.1f} GB"


def number(value: float | None, digits: int = 1) -> str:
    return UNKNOWN if value is None else f"{value:.{digits}f}"


def speed(tokens_per_second: float | None) -> str:
    if tokens_per_second is None:
        return UNKNOWN
    if tokens_per_second < 1000:
        return f"{tokens_per_second:.0f} tokens/s"
    return f"{tokens_per_second / 1000:.1f}k tokens/s"


def three_scores(safety: dict[str, Any] | None) -> str | None:
    """`base 0.0, before 100.0, after 0.0`; None before anything was measured."""
    scores = (safety or {}).get("harmful_score")
    if not scores:
        return None
    return ", ".join(f"{who} {number(scores.get(who))}" for who in ("base", "before", "after"))
