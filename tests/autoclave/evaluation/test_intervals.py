"""Wilson intervals: published values, bounds, coverage."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoclave.evaluation.intervals import wilson


def test_known_values() -> None:
    """Newcombe, Statistics in Medicine 17 (1998), table I."""
    assert wilson(81, 263) == pytest.approx((25.53, 36.62), abs=0.01)
    assert wilson(15, 148) == pytest.approx((6.24, 16.05), abs=0.01)
    assert wilson(0, 20) == pytest.approx((0.0, 16.11), abs=0.01)
    assert wilson(1, 29) == pytest.approx((0.61, 17.18), abs=0.01)


@given(n=st.integers(1, 2000), data=st.data())
def test_bounds_are_the_roots_of_the_score_equation(n: int, data: st.DataObject) -> None:
    successes = data.draw(st.integers(0, n))
    low, high = wilson(successes, n)
    assert 0 <= low <= 100 * successes / n <= high <= 100
    assert low < high
    for bound in (low / 100, high / 100):
        if 0 < bound < 1:
            z = (successes / n - bound) / math.sqrt(bound * (1 - bound) / n)
            assert abs(z) == pytest.approx(1.959963984540054, rel=1e-6)
