"""How figures are written on the page; as filters of its template under the same names."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

NOT_MEASURED = "not measured"
_SPACE = "\N{NO-BREAK SPACE}"


def rate(percent: float | None) -> str:
    return NOT_MEASURED if percent is None else f"{percent:.1f}{_SPACE}%"


def bound(percent: float) -> str:
    """Of a gate: as the operator wrote it."""
    return f"{plain(percent)}{_SPACE}%"


def share(fraction: float | None) -> str:
    """Of a fraction between 0 and 1: three digits that say something."""
    if fraction is None:
        return NOT_MEASURED
    value = 100 * fraction
    digits = 1 if value >= 10 else 2 if value >= 1 else 3
    return f"{value:.{digits}f}{_SPACE}%" if value >= 0.01 or value == 0 else f"{value:.2g}{_SPACE}%"


def loss(nats: float | None) -> str:
    return NOT_MEASURED if nats is None else f"{nats:.4f}"


def count(value: float | None) -> str:
    """A whole number, in groups of three digits that do not break."""
    return NOT_MEASURED if value is None else f"{value:,.0f}".replace(",", _SPACE)


def plain(value: float) -> str:
    """As a person would write it: 0.001, not 1e-3."""
    return f"{value:.12f}".rstrip("0").rstrip(".") if 1e-6 <= abs(value) < 1e12 else f"{value:g}"


def duration(seconds: float | None) -> str:
    if seconds is None:
        return NOT_MEASURED
    if seconds < 100:
        return f"{seconds:.1f} seconds"
    minutes, hours = seconds / 60, seconds / 3600
    return f"{minutes:.1f} minutes" if minutes < 100 else f"{hours:.1f} hours"


def size(num_bytes: float | None) -> str:
    if num_bytes is None:
        return NOT_MEASURED
    for unit in ("bytes", "kB", "MB"):
        if num_bytes < 1000:
            return f"{num_bytes:.0f} bytes" if unit == "bytes" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.1f} GB"


def when(at: datetime | None) -> str:
    return "not recorded" if at is None else f"{at.day} {at:%B %Y, %H:%M:%S} UTC"


def strength(alpha: float | None, mu: float | None) -> str:
    parts = [f"{name} {plain(value)}" for name, value in (("alpha", alpha), ("mu", mu)) if value is not None]
    return ", ".join(parts) or "not recorded"


def listed(words: Sequence[str]) -> str:
    """ "a, b and c"."""
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1]))) if words else ""
