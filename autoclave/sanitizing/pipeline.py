"""The service's default: ridge projection, then Antidote's mask on what is left of the adapter.

The projection separates what the user taught from what harms; the mask is the pruning that every adapter
gets, at the weakest alpha with which some projection meets the gate. Antidote itself prunes the trained
adapter; here its scores are those of the projected one, on its own activations.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from autoclave.data.tokens import Example
from autoclave.progress import ProgressCallback
from autoclave.sanitizing.activations import ActivationNorm, input_norms
from autoclave.sanitizing.masks import select
from autoclave.sanitizing.projection import Projection
from autoclave.sanitizing.sanitizer import Edit, Sanitizer
from autoclave.sanitizing.strengths import Strength
from autoclave.sanitizing.wanda import wanda_scores
from autoclave.spec import ActivationNormKind, MaskRule


class Pipeline(Sanitizer):
    """One more pass over the realignment set for each mu that is tried; all alphas share it."""

    method = "pipeline"

    def __init__(
        self,
        peft_model: Any,
        projection: Projection,
        harmful: Sequence[Example],
        *,
        device: str | torch.device,
        rule: MaskRule = "row",
        kind: ActivationNormKind = "rms",
        batch_tokens: int = 8192,
        on_progress: ProgressCallback | None = None,
    ) -> None:
        super().__init__(peft_model)
        self._model, self.projection, self._harmful = peft_model, projection, harmful
        self._device, self._rule, self._kind, self._batch_tokens = device, rule, kind, batch_tokens
        self._on_progress = on_progress
        self._norms: dict[float, dict[str, ActivationNorm]] = {}

    @torch.no_grad()
    def edit(self, strength: Strength) -> Edit:
        assert strength.alpha is not None, strength
        assert strength.mu is not None, strength
        weights = self.originals | self.projection.edit(strength).weights
        norms = self.norms(strength.mu)
        scores = {
            name: wanda_scores(weight, norms[name].norm.to(weight.device)) for name, weight in weights.items()
        }
        masks = select(scores, strength.alpha, self._rule)
        return Edit({name: weight.masked_fill(masks[name], 0) for name, weight in weights.items()}, masks)

    @torch.no_grad()
    def norms(self, mu: float) -> dict[str, ActivationNorm]:
        """What flows into the factors of the projected adapter on the realignment set."""
        if mu not in self._norms:
            with self.projection.applied(Strength(mu=mu)):
                self._norms[mu] = input_norms(
                    self._model,
                    self._harmful,
                    device=self._device,
                    kind=self._kind,
                    batch_tokens=self._batch_tokens,
                    on_progress=self._on_progress,
                )
        return self._norms[mu]
