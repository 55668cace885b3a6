"""The training curve: packed into rows as it comes, unpacked and thinned out when it is read.

A row holds consecutive steps, each figure as 32-bit floats, one figure after the other. The loss is
computed in 32 bits, so nothing of it is lost.
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

FIGURES = ("train_loss", "learning_rate", "tokens_per_second")
MIN_POINTS = 4


@dataclass(frozen=True)
class Point:
    """One optimiser step: `train_loss` in nats per trained token, `tokens_per_second` the mean since the
    attempt began to train. None where it was not measured."""

    step: int
    train_loss: float | None
    learning_rate: float | None
    tokens_per_second: float | None


def add_steps(
    session: Session,
    job_id: str,
    *,
    first_step: int,
    train_loss: Sequence[float | None],
    learning_rate: Sequence[float | None],
    tokens_per_second: Sequence[float | None],
) -> None:
    """The steps from `first_step` on; the three are equally long."""
    lengths = {len(train_loss), len(learning_rate), len(tokens_per_second)}
    assert len(lengths) == 1, lengths
    figures = pack([*train_loss, *learning_rate, *tokens_per_second])
    session.add(JobMetrics(job_id=job_id, first_step=first_step, num_steps=len(train_loss), figures=figures))
    session.flush()


def read_points(session: Session, job_id: str) -> list[Point]:
    """Every step that was measured, in order; a step that a resumed attempt repeated counts once."""
    query = (
        select(JobMetrics.first_step, JobMetrics.num_steps, JobMetrics.figures)
        .where(JobMetrics.job_id == job_id)
        .order_by(JobMetrics.sequence)
    )
    points: dict[int, Point] = {}
    for first_step, num_steps, figures in session.execute(query):
        values = unpack(figures)
        assert len(values) == len(FIGURES) * num_steps, f"{job_id}: {len(values)} figures, {num_steps} steps"
        columns = (values[i * num_steps : (i + 1) * num_steps] for i in range(len(FIGURES)))
        for offset, (loss, rate, speed) in enumerate(zip(*columns, strict=True)):
            points[first_step + offset] = Point(first_step + offset, loss, rate, speed)
    return [points[step] for step in sorted(points)]


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
    """At most `max_points` (4 or more) of them, in order: both ends, and of each of equally wide buckets
    between them the lowest and the highest loss, so that no spike disappears."""
    assert max_points >= MIN_POINTS, max_points
    if len(points) <= max_points:
        return list(points)
    inner = range(1, len(points) - 1)
    num_buckets = (max_points - 2) // 2
    kept = {0, len(points) - 1}
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
