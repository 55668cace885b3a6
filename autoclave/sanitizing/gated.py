"""The step that every adapter takes: search the weakest strength that meets the gate, leave it applied."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from autoclave.evaluation.figures import Figures
from autoclave.evaluation.safety import SafetyEvaluation
from autoclave.progress import ProgressCallback
from autoclave.sanitizing.gate import gate_refusal
from autoclave.sanitizing.sanitizer import MatrixChange, Sanitizer
from autoclave.sanitizing.search import SearchResult, find_weakest
from autoclave.sanitizing.strengths import Strength, ladders
from autoclave.spec import GateSpec, SanitizeSpec

FiguresCallback = Callable[[Strength | None, Figures], None]


@dataclass(frozen=True)
class GatedResult:
    """`before` and everything in `found` are of the selection half of the prompts; `changes` say what
    the chosen strength did to each matrix."""

    before: Figures
    found: SearchResult
    changes: dict[str, MatrixChange]


def sanitize_gated(
    model: Any,
    sanitizer: Sanitizer,
    spec: SanitizeSpec,
    evaluation: SafetyEvaluation,
    gate: GateSpec,
    *,
    on_progress: ProgressCallback | None = None,
    on_figures: FiguresCallback | None = None,
) -> GatedResult:
    """Measures the adapter, tries strengths (`search.find_weakest`) and applies the one found.

    `on_figures` is told of every measurement, first of the unsanitised adapter (None). Raises SafetyGateError
    with the whole frontier if no strength meets the gate; the adapter is as it was then.
    """

    def measured(strength: Strength) -> Figures:
        with sanitizer.applied(strength):
            figures = evaluation.probe(model, "selection", gate, on_progress=on_progress)
        if on_figures:
            on_figures(strength, figures)
        return figures

    before = evaluation.measure(model, "selection", on_progress=on_progress)
    if on_figures:
        on_figures(None, before)
    found = find_weakest(
        ladders(spec),
        measured,
        lambda figures: gate_refusal(figures, before=before, gate=gate, with_margin=True),
        max_evaluations=spec.max_evaluations,
    )
    return GatedResult(before, found, sanitizer.apply(found.chosen))
