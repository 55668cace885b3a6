"""The training curve: packed into rows as it comes, unpacked and thinned out when it is read.

A row holds consecutive steps, each figure as 32-bit floats, one figure after the other; the last figures are
left out where no step has them. The loss is computed in 32 bits, so nothing of it is lost.
"""

from __future__ import annotations

import math
import sys
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.models import JobMetrics

FIGURES = (
    "train_loss",
    "learning_rate",
    "tokens_per_second",
    "valid_loss",
    "train_mean_token_accuracy",
    "valid_mean_token_accuracy",
)
"""In the order in which they are packed, which is that of `Point`; new ones go to the end."""
MIN_POINTS = 4


@dataclass(frozen=True)
class Point:
    """One optimiser step: losses in nats per trained token of the step and of the validation file, accuracies
    the share of those tokens with the highest logit, `tokens_per_second` the mean since the attempt
    began to train. None where it was not measured."""

    step: int
    train_loss: float | None
    learning_rate: float | None
    tokens_per_second: float | None
    valid_loss: float | None = None
    train_mean_token_accuracy: float | None = None
    valid_mean_token_accuracy: float | None = None


def add_steps(
    session: Session,
    job_id: str,
    *,
    first_step: int,
    train_loss: Sequence[float | None],
    learning_rate: Sequence[float | None],
    tokens_per_second: Sequence[float | None],
    valid_loss: Sequence[float | None] = (),
    train_mean_token_accuracy: Sequence[float | None] = (),
    valid_mean_token_accuracy: Sequence[float | None] = (),
) -> None:
    """The steps from `first_step` on; the lists are equally long, or empty for what was not measured."""
    columns = [
        train_loss,
        learning_rate,
        tokens_per_second,
        valid_loss,
        train_mean_token_accuracy,
        valid_mean_token_accuracy,
    ]
    while len(columns) > 1 and not columns[-1]:
        columns.pop()
    assert all(len(column) in (0, len(train_loss)) for column in columns), [len(c) for c in columns]
    missing = [None] * len(train_loss)
    figures = pack([value for column in columns for value in (column or missing)])
    session.add(JobMetrics(job_id=job_id, first_step=first_step, num_steps=len(train_loss), figures=figures))
    session.flush()


def read_points(session: Session, job_id: str, *, after: int = 0) -> list[Point]:
    """Every step behind `after` that was measured, in order; a step that a resumed attempt repeated counts
    once."""
    query = (
        select(JobMetrics.first_step, JobMetrics.num_steps, JobMetrics.figures)
        .where(JobMetrics.job_id == job_id, JobMetrics.first_step + JobMetrics.num_steps > after + 1)
        .order_by(JobMetrics.sequence)
    )
    points: dict[int, Point] = {}
    for first_step, num_steps, figures in session.execute(query):
        values = unpack(figures)
        num_columns, rest = divmod(len(values), num_steps)
        assert not rest, f"{job_id}: {len(values)} figures, {num_steps} steps"
        assert num_columns <= len(FIGURES), f"{job_id}: {num_columns} figures a step"
        columns = [values[i * num_steps : (i + 1) * num_steps] for i in range(num_columns)]
        for step, found in enumerate(zip(*columns, strict=True), start=first_step):
            points[step] = Point(step, *found)
    return [points[step] for step in sorted(points) if step > after]


def pack(values: Sequence[float | None]) -> bytes:
    """Little-endian 32-bit floats; None becomes NaN. A number too large for 32 bits becomes infinite."""
    packed = array("f", [math.nan if value is None else value for value in values])
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


def unpack(data: bytes) -> list[float | None]:
    """With seven significant digits, which is what 32 bits hold. Non-finite numbers become None: JSON
    has none."""
    values = array("f")
    values.frombytes(data)
    if sys.byteorder == "big":
        values.byteswap()
    return [float(f"{value:.7g}") if math.isfinite(value) else None for value in values]


def thinned(points: Sequence[Point], max_points: int) -> list[Point]:
    """At most `max_points` (4 or more) of them, in order: both ends, where the validation loss was measured
    (at most a quarter of all, evenly chosen), and of each of equally wide buckets between the ends the lowest
    and the highest loss, so that no spike disappears."""
    assert max_points >= MIN_POINTS, max_points
    if len(points) <= max_points:
        return list(points)
    inner = range(1, len(points) - 1)
    validated = [i for i in inner if points[i].valid_loss is not None]
    most = max_points // 4
    if len(validated) > most:
        validated = [validated[(2 * k + 1) * len(validated) // (2 * most)] for k in range(most)]
    num_buckets = (max_points - 2 - len(validated)) // 2
    kept = {0, len(points) - 1, *validated}
    for bucket in range(num_buckets):
        start = bucket * len(inner) // num_buckets
        end = (bucket + 1) * len(inner) // num_buckets
        measured = [i for i in inner[start:end] if points[i].train_loss is not None]
        if measured:
            kept |= {
                min(measured, key=lambda i: _loss(points[i])),
                max(measured, key=lambda i: _loss(points[i])),
            }
    return [points[i] for i in sorted(kept)]


def _loss(point: Point) -> float:
    assert point.train_loss is not None
    return point.train_loss
