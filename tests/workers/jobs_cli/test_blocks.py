"""Curves and bars made of characters, for any numbers."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.jobs_cli.blocks import ASCII_LEVELS, GAP, LEVELS, bar, levels_for, sparkline

finite = st.floats(allow_nan=False, allow_infinity=False)
numbers = st.lists(st.one_of(st.none(), st.floats()), max_size=200)


def is_drawn(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def test_known_curves() -> None:
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7], 20) == LEVELS
    assert sparkline([7, 0], 20) == "█▁"
    assert sparkline([3, 3, 3], 20) == "▄▄▄"
    assert sparkline([0, None, math.nan, 7], 20) == "▁  █"
    assert sparkline([0, 0, 7, 7], 2) == "▁█"
    assert sparkline([], 5) == ""
    assert sparkline([0, 7], 5, levels=ASCII_LEVELS) == "_#"


@given(numbers, st.integers(1, 80), st.sampled_from([LEVELS, ASCII_LEVELS]))
def test_any_numbers_give_a_line_that_fits(values: list[float | None], width: int, levels: str) -> None:
    line = sparkline(values, width, levels=levels)
    assert len(line) == min(width, len(values))
    assert set(line) <= set(levels + GAP)
    assert (set(line) <= {GAP}) == (not any(map(is_drawn, values)))


@given(st.lists(st.one_of(st.none(), finite), min_size=1, max_size=60))
def test_order_is_kept_and_the_ends_of_the_scale_are_used(values: list[float | None]) -> None:
    line = sparkline(values, len(values))
    drawn = sorted(
        (value, LEVELS.index(char)) for value, char in zip(values, line, strict=True) if value is not None
    )
    levels = [level for _, level in drawn]
    assert levels == sorted(levels)
    assert [char == GAP for char in line] == [value is None for value in values]
    # Also where the difference is too small or too large for a float.
    if drawn and drawn[-1][0] / 2 - drawn[0][0] / 2 > 0:
        assert (levels[0], levels[-1]) == (0, len(LEVELS) - 1)


@given(st.lists(st.integers(-1000, 1000), min_size=1, max_size=60), st.integers(1, 60), st.integers(-4, 6))
def test_the_scale_does_not_matter(values: list[int], width: int, exponent: int) -> None:
    """A factor that floats hold exactly: the loss in other units looks the same."""
    assert sparkline([value * 2.0**exponent for value in values], width) == sparkline(values, width)


@given(finite, st.integers(1, 60), st.integers(1, 300))
def test_a_mean_lies_between_what_it_is_of(value: float, width: int, count: int) -> None:
    assert set(sparkline([value] * count, width)) == {"▄"}


@pytest.mark.parametrize(("fraction", "shown"), [(0, "    "), (1, "████"), (0.5, "██  "), (1e-9, "▏   ")])
def test_known_bars(fraction: float, shown: str) -> None:
    assert bar(fraction, 4) == shown


@given(st.floats(), st.integers(1, 60), st.sampled_from([LEVELS, ASCII_LEVELS]))
def test_a_bar_has_its_width_whatever_it_shows(fraction: float, width: int, levels: str) -> None:
    shown = bar(fraction, width, levels=levels)
    assert len(shown) == width
    assert (shown.strip() == "") == (math.isnan(fraction) or fraction <= 0)


def test_blocks_only_where_the_output_can_carry_them() -> None:
    assert levels_for("utf-8") == LEVELS
    assert levels_for("ascii") == levels_for("latin-1") == levels_for("no such encoding") == ASCII_LEVELS
