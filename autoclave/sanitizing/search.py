"""The weakest strength that meets a gate. Knows neither models nor what is measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from autoclave.errors import SafetyGateError


@dataclass(frozen=True)
class SearchResult:
    """`frontier` has one entry per strength tried, in order: `alpha`, everything measured, and
    `refused`: why the gate refused it, or None. The last one is the chosen one."""

    chosen: float
    frontier: list[dict[str, Any]]


def find_weakest(
    alphas: Sequence[float],
    measure: Callable[[float], dict[str, Any]],
    gate: Callable[[dict[str, Any]], str | None],
) -> SearchResult:
    """Tries `alphas` (ascending) and stops at the first one the gate accepts.

    Stronger ones are not tried: masks are nested, so they remove more of the task for harm that is
    already low enough. Raises SafetyGateError with the whole frontier if none is accepted.
    """
    assert list(alphas) == sorted(set(alphas)), alphas
    assert alphas, "no strength to try"
    frontier: list[dict[str, Any]] = []
    for alpha in alphas:
        figures = measure(alpha)
        refused = gate(figures)
        frontier.append({"alpha": alpha, **figures, "refused": refused})
        if refused is None:
            return SearchResult(alpha, frontier)
    raise SafetyGateError(
        f"no strength from {alphas[0]} to {alphas[-1]} met the gate; at {alphas[-1]}: {refused}", frontier
    )
