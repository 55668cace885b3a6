"""Values as people read them: filters of the templates."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from markupsafe import Markup

NOTHING = "\N{EN DASH}"


def when(epoch_seconds: float | None) -> Markup | str:
    """`2026-11-21 17:52:07 UTC`; the browser adds how long ago that is (static/app.js)."""
    if epoch_seconds is None:
        return NOTHING
    moment = datetime.fromtimestamp(epoch_seconds, UTC)
    return Markup('<time datetime="{}">{}</time>').format(
        moment.isoformat(timespec="milliseconds"), moment.strftime("%Y-%m-%d %H:%M:%S UTC")
    )


_UNITS = (("min", 60, 3600, "s", 1), ("h", 3600, 86400, "min", 60), ("d", 86400, float("inf"), "h", 3600))


def duration(seconds: float | None) -> str:
    """`0.4 s`, `48 s`, `12 min 5 s`, `3 h 20 min`, `2 d 4 h`."""
    if seconds is None:
        return NOTHING
    if seconds < 9.95:
        return f"{max(seconds, 0):.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    unit, size, _, smaller, smaller_size = next(u for u in _UNITS if whole < u[2])
    rest = whole % size // smaller_size
    return f"{whole // size} {unit}" + (f" {rest} {smaller}" if rest else "")


def num_bytes(count: float | None) -> str:
    """`512 B`, `1.5 MB`: powers of 1,000, as disks are sold."""
    if count is None:
        return NOTHING
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(count) < 1000 or unit == "TB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError(count)


def number(value: float | None) -> str:
    """`1,234,567`; four significant digits of what is not whole."""
    if value is None:
        return NOTHING
    if isinstance(value, int) or float(value).is_integer():
        return f"{int(value):,}"
    return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"


def percent(value: float | None) -> str:
    """Of a figure that is in percent already."""
    return NOTHING if value is None else f"{value:.1f} %"


def short(id: str) -> str:
    """The beginning of an identifier or a hash; the whole belongs in a title beside it."""
    return id if len(id) <= 14 else f"{id[:13]}…"


FILTERS: dict[str, Callable[[Any], Any]] = {
    "when": when,
    "duration": duration,
    "bytes": num_bytes,
    "number": number,
    "percent": percent,
    "short": short,
}
