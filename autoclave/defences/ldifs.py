"""LDIFS: fine-tuning that keeps the features of the initial model.

Source: arXiv 2308.13320, and omegafragger/ldifs_code, loss/ldifs.py; as a defence of language models in
git-disl/Antidote, trainer.py:214-321. The step minimises

    CE + strength * mean over layers and tokens of || a / ||a|| - a0 / ||a0|| ||^2

where a and a0 (D,) are a layer's MLP output at one token, under the current and the initial weights.

The distance is the paper's: normalised over channels, averaged; strength 10 is its authors' choice (README).
Antidote's code deviates, and is not followed: features unnormalised and summed over all tokens, padding
included, with strength 1e-4; a layer's term dropped once it is 0.1 or more, so that only layers that hardly
drift are held; a second copy of the whole model as reference. Here the initial adapter is put in for one pass
without a graph.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from autoclave.data.tokens import Batch
from autoclave.defences.weights import copy_of, prefixed, replaced, without_prefix
from autoclave.modelling.layer_parts import layer_parts, outputs_of
from autoclave.spec import LdifsSpec
from autoclave.training.objective import Objective, StepFigures, Training, count_trained, identity_of

_EPSILON = 1e-10
_PREFIX = "objective.initial."


class Ldifs(Objective):
    """Two forward passes and one backward pass. `penalty` is strength times the mean distance."""

    over_ranks = True

    def __init__(self, spec: LdifsSpec) -> None:
        self._spec = spec

    @property
    def method(self) -> LdifsSpec:
        return self._spec

    def begin(self, training: Training) -> None:
        super().begin(training)
        self._mlps = layer_parts(training.model, "mlp")
        self._initial = copy_of(training.parameters)

    def accumulate(self, step: int) -> StepFigures:
        training = self.training
        examples = training.examples_of(step)
        num_trained = count_trained(examples)
        num_inputs = sum(len(example) - 1 for example in examples)  # the last token is no input
        total, num_right, penalty = torch.zeros((3,), device=training.device)
        with training.ranks.together():
            for batch in training.cut(training.ranks.share(examples)):
                references = self._initial_features(batch)
                with outputs_of(self._mlps) as features:
                    loss, _, right = training.token_loss(training.model, batch)
                distance = summed_distance(features, references, batch.attention_mask[:, 1:])
                batch_penalty = self._spec.strength / num_inputs * distance
                torch.autograd.backward(loss / num_trained + batch_penalty)
                total += loss.detach()
                num_right += right
                penalty += batch_penalty.detach()
        figures = torch.stack((total, num_right, penalty))
        total, num_right, penalty = training.ranks.add_up(training.parameters.values(), figures)
        return StepFigures(
            total / num_trained, num_right / num_trained, num_trained, sum(map(len, examples)), penalty
        )

    def state(self) -> dict[str, Tensor]:
        return prefixed(_PREFIX, self._initial)

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        self._initial = without_prefix(_PREFIX, tensors, self.training.parameters)

    def identity(self) -> bytes:
        return identity_of(self._spec)

    @torch.no_grad()
    def _initial_features(self, batch: Batch) -> list[Tensor]:
        """Of each layer (B, T-1, D), without dropout."""
        training = self.training
        training.model.eval()
        try:
            with replaced(training.parameters, self._initial), outputs_of(self._mlps) as features:
                training.token_loss(training.model, batch)
        finally:
            training.model.train()
        return features


def summed_distance(features: Sequence[Tensor], references: Sequence[Tensor], mask: Tensor) -> Tensor:
    """Squared distance of normalised features, (B, T, D) per layer: the sum over the tokens where `mask`
    (B, T) is 1, the mean over layers. float32, or float64 for features of that type."""
    assert len(features) == len(references) > 0, (len(features), len(references))
    distances = [
        ((_normalised(a) - _normalised(a0)).square().sum(dim=-1) * mask).sum()
        for a, a0 in zip(features, references, strict=True)
    ]
    return torch.stack(distances).mean()


def _normalised(features: Tensor) -> Tensor:
    features = features.to(torch.promote_types(features.dtype, torch.float32))
    lengths: Tensor = features.norm(dim=-1, keepdim=True)
    return features / (lengths + _EPSILON)
