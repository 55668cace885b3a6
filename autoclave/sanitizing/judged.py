"""The weakest strength that meets a gate, judged on prompts that did not choose it, beside its controls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from autoclave.data.tokens import Example
from autoclave.errors import SafetyGateError
from autoclave.evaluation.figures import Figures
from autoclave.evaluation.safety import SafetyEvaluation
from autoclave.progress import ProgressCallback
from autoclave.sanitizing.controls import measure_controls
from autoclave.sanitizing.gate import gate_refusal
from autoclave.sanitizing.gated import sanitize_gated
from autoclave.sanitizing.pipeline import Pipeline
from autoclave.sanitizing.rewind import RewindingAntidote
from autoclave.sanitizing.sanitizer import Sanitizer
from autoclave.sanitizing.strengths import Strength
from autoclave.spec import GateSpec, SanitizeSpec

# As good as any other; fixed, so that the figures can be repeated.
_SEED = 0


def sanitize_judged(
    model: Any,
    sanitizer: Sanitizer,
    spec: SanitizeSpec,
    evaluation: SafetyEvaluation,
    gate: GateSpec,
    *,
    harmful: Sequence[Example],
    batch_tokens: int = 8192,
    on_progress: ProgressCallback | None = None,
) -> tuple[Strength, dict[str, Any]]:
    """The strength, left applied, and what was measured, as plain data.

    `before`, `after` and the controls `base`, `random_control` and `ablations` (`controls.Controls`; None
    where there are none) are of the held-out half of the prompts, `frontier` is the search on the other half.
    Of an adapter that is rewound `ablations` has the `aligned_adapter` that it began with: its floor.
    `harmful` and `batch_tokens` are what `sanitizer` was built with.

    Raises SafetyGateError with the frontier if no strength meets the gate, or if the chosen one does not on
    the held-out prompts; the adapter is as it was then.
    """

    def measured(utility_from: Figures | None = None) -> Figures:
        return evaluation.measure(model, "held_out", utility_from=utility_from, on_progress=on_progress)

    result = sanitize_gated(model, sanitizer, spec, evaluation, gate, on_progress=on_progress)
    chosen, frontier = result.found.chosen, result.found.frontier
    after = measured(result.found.figures)
    sanitizer.restore()
    before = measured(result.before)
    refusal = gate_refusal(after, before=before, gate=gate, with_margin=False)
    if refusal is not None:
        raise SafetyGateError(f"{chosen} met the gate, but not on the held-out prompts: {refusal}", frontier)
    controls = measure_controls(
        model,
        spec,
        chosen,
        evaluation,
        harmful=harmful,
        user=None,
        seed=_SEED,
        projection=sanitizer.projection if isinstance(sanitizer, Pipeline) else None,
        rewound_to=sanitizer.aligned if isinstance(sanitizer, RewindingAntidote) else None,
        batch_tokens=batch_tokens,
        on_progress=on_progress,
    )
    ablations = controls.ablations
    if isinstance(sanitizer, RewindingAntidote):
        with sanitizer.wholly_rewound():
            ablations = {**ablations, "aligned_adapter": measured()}
    sanitizer.apply(chosen)
    return chosen, {
        "base": controls.base.as_dict(),
        "before": before.as_dict(),
        "after": after.as_dict(),
        "random_control": controls.random_control and controls.random_control.as_dict(),
        "ablations": {n: figures.as_dict() for n, figures in ablations.items()} or None,
        "frontier": frontier,
    }
