"""Learning-rate schedules: warm-up, peak, end."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoclave.training.schedule import Schedule, learning_rate_at

SCHEDULES: tuple[Any, ...] = ("constant", "linear", "cosine")


def rates(total: int, schedule: Schedule, warmup: float) -> list[float]:
    return [
        learning_rate_at(s, total_steps=total, peak=2.0, schedule=schedule, warmup_ratio=warmup)
        for s in range(total)
    ]


def test_golden_values() -> None:
    assert rates(4, "constant", 0.0) == [2.0, 2.0, 2.0, 2.0]
    assert rates(4, "linear", 0.0) == [2.0, 1.5, 1.0, 0.5]
    assert rates(4, "cosine", 0.0) == pytest.approx([2.0, 1.7071068, 1.0, 0.2928932])
    assert rates(6, "linear", 0.3) == pytest.approx([2 / 3, 4 / 3, 2.0, 1.5, 1.0, 0.5])
    assert rates(3, "constant", 1.0) == [0.5, 1.0, 1.5]


@given(total=st.integers(1, 300), schedule=st.sampled_from(SCHEDULES), warmup=st.floats(0, 1))
def test_rises_then_falls_and_every_step_learns(total: int, schedule: Schedule, warmup: float) -> None:
    values = rates(total, schedule, warmup)
    assert all(0 < v <= 2.0 for v in values)
    peak = values.index(max(values))
    assert values[: peak + 1] == sorted(values[: peak + 1])
    assert values[peak:] == sorted(values[peak:], reverse=True)
