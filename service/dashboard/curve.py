"""The training curve for a page: columns for plots, a few figures for readers, a drawing without scripts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from service.jobs.metrics import FIGURES, Point, thinned

MAX_POINTS = 600
"""More are not seen in a plot of a page's width."""
TABLE_ROWS = 12
_DRAWN_POINTS = 200
_WIDTH, _HEIGHT, _MARGIN = 600.0, 200.0, 8.0


def columns(points: Sequence[Point], *, attempt: int) -> dict[str, Any]:
    """As JSON: a list per figure, null where it was not measured. `attempt` changes when steps may have been
    repeated."""
    shown = thinned(points, MAX_POINTS)
    return {
        "attempt": attempt,
        "step": [point.step for point in shown],
        **{name: [getattr(point, name) for point in shown] for name in FIGURES},
    }


def few(points: Sequence[Point]) -> list[Point]:
    """Evenly chosen, both ends included."""
    if len(points) <= TABLE_ROWS:
        return list(points)
    last = len(points) - 1
    return [points[round(i * last / (TABLE_ROWS - 1))] for i in range(TABLE_ROWS)]


@dataclass(frozen=True)
class Sparkline:
    """`points` are those of an SVG polyline in a box of `width` by `height`."""

    points: str
    width: float
    height: float
    words: str


def sparkline(points: Sequence[Point], name: str) -> Sparkline | None:
    """Of one figure; None where there are not two of it."""
    every = [
        (point.step, value)
        for point in thinned(points, _DRAWN_POINTS)
        if (value := getattr(point, name)) is not None
    ]
    if len(every) < 2:
        return None
    steps, values = [step for step, _ in every], [value for _, value in every]
    low, high = min(values), max(values)

    def place(step: int, value: float) -> str:
        x = _MARGIN + (_WIDTH - 2 * _MARGIN) * (step - steps[0]) / (steps[-1] - steps[0])
        share = 0.5 if high == low else (value - low) / (high - low)
        return f"{x:.1f},{_MARGIN + (_HEIGHT - 2 * _MARGIN) * (1 - share):.1f}"

    words = f"from {values[0]:.4g} at step {steps[0]:,} to {values[-1]:.4g} at step {steps[-1]:,}"
    return Sparkline(Markup(" ").join(place(*each) for each in every), _WIDTH, _HEIGHT, words)
