"""Antidote (arXiv 2408.09600): prune what an adapter uses most on harmful examples.

Exactly the authors' procedure in LoRA mode (docs/antidote.md 2 to 5): the user's lora_A and lora_B
of all adapted layers, scored on one pass over the realignment set, the top fraction alpha of each row
set to zero. The base is never touched; rank and file layout stay. Deviations: those that activations.py
documents, and no others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from autoclave.data.tokens import Example
from autoclave.progress import ProgressCallback
from autoclave.sanitizing.activations import ActivationNorm, factor_layers, input_second_moments
from autoclave.sanitizing.masks import pruned_per_row, row_mask
from autoclave.sanitizing.wanda import wanda_scores


@dataclass(frozen=True)
class MatrixCount:
    """What a strength prunes in one matrix. `already_zero` of the `pruned` entries were zero before."""

    rows: int
    cols: int
    pruned_per_row: int
    pruned: int
    already_zero: int


class Antidote:
    """The masks of one adapter for every strength, from one pass.

    `apply` changes the adapter in place, always starting from the weights it had when this object was
    made; `restore` brings those back, bit for bit. So a search can try strengths in any order.
    """

    def __init__(self, peft_model: Any, norms: dict[str, ActivationNorm]) -> None:
        self.norms = norms
        self._layers: dict[str, nn.Linear] = factor_layers(peft_model)
        assert self._layers.keys() == norms.keys(), "the statistics are of another adapter"
        self._originals = {name: layer.weight.detach().clone() for name, layer in self._layers.items()}

    @classmethod
    def from_pass(
        cls,
        peft_model: Any,
        examples: Sequence[Example],
        *,
        device: str | torch.device,
        batch_tokens: int = 8192,
        on_progress: ProgressCallback | None = None,
    ) -> Antidote:
        """Measures activations on the realignment set (`activations.input_second_moments`)."""
        norms = input_second_moments(
            peft_model, examples, device=device, batch_tokens=batch_tokens, on_progress=on_progress
        )
        return cls(peft_model, norms)

    def mask(self, name: str, alpha: float) -> Tensor:
        """(out, in) bool on the adapter's device, True where to prune; `name` as in `factor_layers`."""
        weight = self._originals[name]
        second_moment = self.norms[name].second_moment.to(weight.device)
        return row_mask(wanda_scores(weight, second_moment), alpha)

    def masks(self, alpha: float) -> dict[str, Tensor]:
        return {name: self.mask(name, alpha) for name in self._layers}

    @torch.no_grad()
    def apply(self, alpha: float) -> dict[str, MatrixCount]:
        """Prunes the adapter at this strength. Returns the counts per matrix."""
        counts = {}
        for name, layer in self._layers.items():
            mask = self.mask(name, alpha)
            original = self._originals[name]
            layer.weight.copy_(original.masked_fill(mask, 0))
            counts[name] = MatrixCount(
                rows=mask.shape[0],
                cols=mask.shape[1],
                pruned_per_row=pruned_per_row(mask.shape[1], alpha),
                pruned=int(mask.sum()),
                already_zero=int((mask & (original == 0)).sum()),
            )
        return counts

    @torch.no_grad()
    def restore(self) -> None:
        for name, layer in self._layers.items():
            layer.weight.copy_(self._originals[name])

    @contextmanager
    def applied(self, alpha: float) -> Iterator[dict[str, MatrixCount]]:
        """The adapter is pruned inside the block and whole after it."""
        try:
            yield self.apply(alpha)
        finally:
            self.restore()
