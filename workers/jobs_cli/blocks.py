"""Plots made of characters: a curve in one line, and bars. Pure functions of numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence

LEVELS = "▁▂▃▄▅▆▇█"
ASCII_LEVELS = "_.-=+*%#"
GAP = " "
_EIGHTHS = " ▏▎▍▌▋▊▉"


def levels_for(encoding: str) -> str:
    """Blocks where the output can carry them."""
    try:
        LEVELS.encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return ASCII_LEVELS
    return LEVELS


def sparkline(values: Sequence[float | None], width: int, *, levels: str = LEVELS) -> str:
    """One character per value, or, of more values than `width`, one per equal part of them: its mean.

    The lowest is drawn with the first of `levels`, the highest with the last, equal values in the middle.
    What is None or not finite is left out, and a part without any number is a gap.
    """
    assert width > 0, width
    num_columns = min(width, len(values))
    columns: list[float | None] = []
    for i in range(num_columns):
        part = values[i * len(values) // num_columns : (i + 1) * len(values) // num_columns]
        known = [value for value in part if value is not None and math.isfinite(value)]
        columns.append(_mean(known) if known else None)
    drawn = [value for value in columns if value is not None]
    if not drawn:
        return GAP * num_columns
    low, high = min(drawn), max(drawn)
    return "".join(GAP if value is None else levels[_level(value, low, high, levels)] for value in columns)


def _mean(values: Sequence[float]) -> float:
    # Divided first: the sum of large numbers may be too large for a float. Of equal ones exactly that one,
    # or what rounding leaves would be drawn as a curve.
    mean = sum(value / len(values) for value in values)
    return min(max(mean, min(values)), max(values))


def _level(value: float, low: float, high: float, levels: str) -> int:
    last = len(levels) - 1
    # In halves: the difference of large numbers may be too large for a float.
    span = high / 2 - low / 2
    if span == 0:
        return last // 2
    return round((value / 2 - low / 2) / span * last)


def bar(fraction: float, width: int, *, levels: str = LEVELS) -> str:
    """`width` characters, of which `fraction` (cut to 0..1) is filled. What is above 0 shows, however little
    it is."""
    assert width > 0, width
    fraction = 0.0 if math.isnan(fraction) else min(max(fraction, 0.0), 1.0)
    if levels != LEVELS:
        return ("#" * math.ceil(fraction * width)).ljust(width)
    whole, eighths = divmod(math.ceil(fraction * width * 8), 8)
    return ("█" * whole + (_EIGHTHS[eighths] if eighths else "")).ljust(width)
