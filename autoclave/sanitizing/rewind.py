"""Antidote for an adapter that was aligned before it was fine-tuned: masked entries go back, not to zero.

Ours; no paper has it. Booster's alignment holds only while its own LoRA is trained on (git-disl/Booster,
issue 2, its authors: merged into the base and followed by a new LoRA it is weaker). Then alignment and the
user's fine-tuning are in the same factors, and Antidote, which zeroes entries, would prune the alignment
too. With W_al a factor as it left the alignment and W_ft as it left the fine-tuning,

    W = W_al + (1 - M) * (W_ft - W_al)      for lora_A and lora_B, each by itself

where M marks the entries with the highest scores |W_ft - W_al| * ||input||, Antidote's score of what
fine-tuning changed. Rank and file layout stay. For W_al = 0 it is Antidote.

Rewinding factors is not rewinding their product: B A mixes rewound and kept entries, so a half rewound
adapter lies on no line between the two. At alpha close to 1 it is the aligned adapter.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from autoclave.errors import UnsupportedAdapterError
from autoclave.sanitizing.activations import ActivationNorm
from autoclave.sanitizing.antidote import Antidote
from autoclave.sanitizing.sanitizer import Edit
from autoclave.sanitizing.strengths import Strength
from autoclave.sanitizing.wanda import wanda_scores
from autoclave.spec import MaskRule

REWIND = "factor-space rewind (ours, no paper's): masked entries are those of the aligned adapter"
"""The label of what comes out."""


class RewindingAntidote(Antidote):
    """`aligned` are the factors that fine-tuning began with, (out, in) by the names of `factor_layers`;
    `norms` are measured with the fine-tuned adapter. Raises UnsupportedAdapterError if they are not of the
    same layers and shapes."""

    def __init__(
        self,
        peft_model: Any,
        norms: dict[str, ActivationNorm],
        aligned: Mapping[str, Tensor],
        *,
        rule: MaskRule = "row",
    ) -> None:
        super().__init__(peft_model, norms, rule=rule)
        for name, original in self.originals.items():
            found = None if name not in aligned else tuple(aligned[name].shape)
            if found != tuple(original.shape):
                raise UnsupportedAdapterError(
                    f"{name} has the shape {tuple(original.shape)} after fine-tuning and {found} before it: "
                    "the adapter that was aligned must be the one that was trained on."
                )
        self.aligned = {
            name: aligned[name].detach().to(original.device, original.dtype)
            for name, original in self.originals.items()
        }

    @contextmanager
    def wholly_rewound(self) -> Iterator[None]:
        """Inside the block the adapter is the aligned one, after it what fine-tuning made of it."""
        try:
            with torch.no_grad():
                for name, layer in self.layers.items():
                    layer.weight.copy_(self.aligned[name])
            yield
        finally:
            self.restore()

    def scores(self, name: str) -> Tensor:
        """(out, in) float32: of what fine-tuning changed."""
        return wanda_scores(self.originals[name] - self.aligned[name], self.norms[name].norm)

    def edit(self, strength: Strength) -> Edit:
        assert strength.alpha is not None, f"Antidote needs an alpha, got {strength}"
        masks = self.masks(strength.alpha)
        return Edit(
            {
                name: torch.where(mask, self.aligned[name], self.originals[name])
                for name, mask in masks.items()
            },
            masks,
        )
