"""Values out of a stored report, which may be older than any field: what is not there, or is not what it
should be, is None, and the page says "not measured". Nothing here raises."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any


def mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def entries(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def number(value: Any) -> float | None:
    """Finite, and no truth value."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        as_float = float(value)
    except OverflowError:
        return None
    return as_float if math.isfinite(as_float) else None


def whole(value: Any) -> int | None:
    as_float = number(value)
    return None if as_float is None else round(as_float)


def text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def moment(seconds: Any) -> datetime | None:
    """Of seconds since the epoch, in UTC."""
    at = number(seconds)
    try:
        return None if at is None else datetime.fromtimestamp(at, UTC)
    except (OverflowError, OSError, ValueError):
        return None
