"""Antidote (arXiv 2408.09600): prune what an adapter uses most on harmful examples.

The authors' procedure in LoRA mode (docs/antidote.md 2 to 5): the user's lora_A and lora_B of all adapted
layers, scored on one pass over the realignment set, the top fraction alpha set to zero, of each row unless
another rule is asked for. The base is never touched; rank and file layout stay.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from autoclave.data.tokens import Example
from autoclave.progress import ProgressCallback
from autoclave.sanitizing.activations import ActivationNorm, Precision, input_norms
from autoclave.sanitizing.masks import select
from autoclave.sanitizing.sanitizer import Edit, Sanitizer
from autoclave.sanitizing.strengths import Strength
from autoclave.sanitizing.wanda import wanda_scores
from autoclave.spec import ActivationNormKind, MaskRule, SanitizerName


class Antidote(Sanitizer):
    """The masks of one adapter for every alpha, from one pass."""

    method: ClassVar[SanitizerName] = "antidote"

    def __init__(self, peft_model: Any, norms: dict[str, ActivationNorm], *, rule: MaskRule = "row") -> None:
        super().__init__(peft_model)
        assert self.layers.keys() == norms.keys(), "the norms are of another adapter"
        self.norms = norms
        self.rule: MaskRule = rule

    @classmethod
    def from_pass(
        cls,
        peft_model: Any,
        examples: Sequence[Example],
        *,
        device: str | torch.device,
        rule: MaskRule = "row",
        kind: ActivationNormKind = "rms",
        precision: Precision | None = None,
        batch_tokens: int = 8192,
        on_progress: ProgressCallback | None = None,
    ) -> Antidote:
        """Measures activations on the realignment set (`activations.input_norms`)."""
        norms = input_norms(
            peft_model,
            examples,
            device=device,
            kind=kind,
            precision=precision,
            batch_tokens=batch_tokens,
            on_progress=on_progress,
        )
        return cls(peft_model, norms, rule=rule)

    def scores(self, name: str) -> Tensor:
        """(out, in) float32 on the adapter's device; `name` as in `factor_layers`."""
        return wanda_scores(self.originals[name], self.norms[name].norm)

    def mask(self, name: str, alpha: float) -> Tensor:
        """(out, in) bool on the adapter's device, True where to prune."""
        if self.rule == "global":
            return self.masks(alpha)[name]
        return select({name: self.scores(name)}, alpha, self.rule)[name]

    def masks(self, alpha: float) -> dict[str, Tensor]:
        """By name, in the model's order."""
        return select({name: self.scores(name) for name in self.layers}, alpha, self.rule)

    def edit(self, strength: Strength) -> Edit:
        assert strength.alpha is not None, f"Antidote needs an alpha, got {strength}"
        masks = self.masks(strength.alpha)
        return Edit({name: self.originals[name].masked_fill(mask, 0) for name, mask in masks.items()}, masks)
