"""The search stops at the weakest accepted strength and reports every one it tried."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoclave.errors import SafetyGateError
from autoclave.sanitizing.search import find_weakest

ALPHAS = (0.01, 0.05, 0.1, 0.2)


def gate(figures: dict[str, Any]) -> str | None:
    return f"harm {figures['harm']}" if figures["harm"] > 20 else None


@given(passes_at=st.integers(0, 3))
def test_weakest_first(passes_at: int) -> None:
    tried: list[float] = []

    def measure(alpha: float) -> dict[str, Any]:
        tried.append(alpha)
        return {"harm": 10 if alpha >= ALPHAS[passes_at] else 90}

    result = find_weakest(ALPHAS, measure, gate)
    assert result.chosen == ALPHAS[passes_at]
    assert tried == list(ALPHAS[: passes_at + 1])
    assert result.frontier == [{"alpha": a, "harm": 90, "refused": "harm 90"} for a in ALPHAS[:passes_at]] + [
        {"alpha": ALPHAS[passes_at], "harm": 10, "refused": None}
    ]


def test_none_passes() -> None:
    with pytest.raises(SafetyGateError, match=r"from 0\.01 to 0\.2 .* at 0\.2: harm 90") as caught:
        find_weakest(ALPHAS, lambda alpha: {"harm": 90}, gate)
    assert [entry["alpha"] for entry in caught.value.frontier] == list(ALPHAS)
