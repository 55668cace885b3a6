"""What else could have been done to a trained adapter, measured beside what was: the controls of a report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from autoclave.data.tokens import Example
from autoclave.evaluation.figures import Figures
from autoclave.evaluation.safety import SafetyEvaluation
from autoclave.progress import ProgressCallback
from autoclave.sanitizing.methods import build_sanitizer
from autoclave.sanitizing.random_control import randomly_pruned
from autoclave.sanitizing.sanitizer import Sanitizer
from autoclave.sanitizing.strengths import Strength
from autoclave.spec import SanitizeSpec


@dataclass(frozen=True)
class Controls:
    """On the held-out half of the prompts. `base`: the bare base. `random_control`: as large a mask of random
    entries, None where nothing is pruned. `ablations`: the pipeline's two halves alone, `mask_alone`, which
    is Antidote on the trained adapter, and `projection_alone`; other methods have none."""

    base: Figures
    random_control: Figures | None
    ablations: dict[str, Figures] = field(default_factory=dict)


def measure_controls(
    model: Any,
    spec: SanitizeSpec,
    strength: Strength,
    evaluation: SafetyEvaluation,
    *,
    harmful: Sequence[Example],
    user: Sequence[Example] | None,
    seed: int,
    projection: Sanitizer | None = None,
    rewound_to: Mapping[str, Tensor] | None = None,
    batch_tokens: int = 8192,
    on_progress: ProgressCallback | None = None,
    on_pass: Callable[[], None] | None = None,
) -> Controls:
    """`model` wears the adapter as it was trained, and still does afterwards. `strength` is the chosen one.

    `harmful` and `user` are what the sanitiser was built with; only the pipeline looks at them, and at `user`
    only if it is not given a `projection` that was made for `strength.mu` already. `seed` draws the random
    mask, whose entries go to `rewound_to` where that is given (`rewind`). `on_pass` is told of the end of
    every measurement and of every pass that prepares one.
    """

    def passed() -> None:
        if on_pass:
            on_pass()

    def measured() -> Figures:
        figures = evaluation.measure(model, "held_out", on_progress=on_progress)
        passed()
        return figures

    def ablation(sanitizer: Sanitizer, part: Strength) -> Figures:
        with sanitizer.applied(part):
            return measured()

    def built(changes: dict[str, Any]) -> Sanitizer:
        sanitizer = build_sanitizer(
            model,
            spec.model_copy(update=changes),
            harmful=harmful,
            user=user,
            device=evaluation.device,
            batch_tokens=batch_tokens,
            on_progress=on_progress,
        )
        passed()
        return sanitizer

    with model.disable_adapter():
        base = measured()
    random_control = None
    if strength.alpha is not None:
        with randomly_pruned(model, strength.alpha, seed=seed, rule=spec.rule, rewound_to=rewound_to):
            random_control = measured()
    if spec.method != "pipeline":
        return Controls(base, random_control)
    assert strength.mu is not None, strength
    mask_alone = ablation(built({"method": "antidote"}), Strength(alpha=strength.alpha))
    if projection is None:
        projection = built({"method": "projection", "mus": (strength.mu,)})
    projection_alone = ablation(projection, Strength(mu=strength.mu))
    ablations = {"mask_alone": mask_alone, "projection_alone": projection_alone}
    return Controls(base, random_control, ablations)
