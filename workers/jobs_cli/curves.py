"""The training curve as plots of one line each, or as columns for another program."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.table import Table
from rich.text import Text

from workers.jobs_cli.blocks import sparkline

FIGURES = (
    "train_loss",
    "valid_loss",
    "train_mean_token_accuracy",
    "valid_mean_token_accuracy",
    "learning_rate",
    "tokens_per_second",
)


def curves_table(points: list[dict[str, Any]], *, width: int, levels: str) -> Table:
    """A row per figure that was measured, with its first, last, lowest and highest value."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    steps = f"steps {points[0]['step']} to {points[-1]['step']}" if points else "no step was measured yet"
    table.add_column(steps)
    for heading in ("first", "last", "lowest", "highest"):
        table.add_column(heading, justify="right")
    for figure in FIGURES:
        values = [point[figure] for point in points if point[figure] is not None]
        if not values:
            continue
        # Measured now and then: without the steps between, or there would be gaps only.
        plot = sparkline(values, max(10, min(60, width - 44)), levels=levels)
        numbers = (values[0], values[-1], min(values), max(values))
        table.add_row(Text(figure.replace("_", " "), style="bold"))
        table.add_row(Text(plot), *(f"{number:.4g}" for number in numbers))
    return table


def columns(points: list[dict[str, Any]]) -> Iterator[str]:
    """Tab-separated, a line per step behind a line of names; nothing where nothing was measured."""
    names = ("step", *FIGURES)
    yield "\t".join(names)
    for point in points:
        yield "\t".join("" if point[name] is None else str(point[name]) for name in names)
