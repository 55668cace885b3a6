"""Supervised loss on trained tokens only: the output head never sees the other positions.

A token loss is any function `(model, batch) -> Summed`. Objectives (`objective.py`) divide by the tokens of
the whole step, so token losses sum and never average.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from autoclave.data.tokens import IGNORED, Batch
from autoclave.modelling.backbone import Backbone, backbone_of
from autoclave.modelling.packing import PackedBackbone
from autoclave.training.head_loss import token_losses


class Summed(NamedTuple):
    """Over the trained tokens of a batch: the loss (nats, with its graph), how many they are, and how many of
    them have the highest logit (int64, without a graph; the first of equals counts)."""

    loss: Tensor
    num_tokens: int
    num_right: Tensor


TokenLoss = Callable[[Any, Batch], Summed]


def causal_loss(model: Any, batch: Batch) -> Summed:
    """Summed cross entropy (nats, computed in float32, or float64 if the model is)
    of the trained tokens.

    Equal to the sum over full logits. The last token of a row is never an input, because nothing after it is
    predicted.
    """
    assert batch.packed_lengths is None, "a packed row needs packed_causal_loss"
    backbone = backbone_of(model)
    hidden = backbone.hidden_states(batch.input_ids[:, :-1])  # (B, T-1, D)
    targets, trained = _trained(batch)
    return _loss(backbone, hidden.flatten(0, 1)[trained], targets)


def packed_causal_loss(model: Any, *, device: str | torch.device) -> TokenLoss:
    """The same sum for batches made by `tokens.pack`, in which each example sees itself alone. The model
    must be in eval mode while this is called, in any mode later. Raises ModelError for an architecture that
    cannot keep examples apart."""
    packed = PackedBackbone(backbone_of(model), device)

    def token_loss(model: Any, batch: Batch) -> Summed:
        assert batch.packed_lengths is not None, "a batch that is not packed"
        targets, trained = _trained(batch)
        hidden = packed.hidden_states_of(trained, batch.input_ids[:, :-1], batch.packed_lengths)  # (N, D)
        return _loss(backbone_of(model), hidden, targets)

    return token_loss


def _trained(batch: Batch) -> tuple[Tensor, Tensor]:
    """Targets (N,) of the tokens that are trained, and their places (N,) among all but the last of a row."""
    targets = batch.labels[:, 1:].flatten()  # (B * (T-1),)
    (trained,) = torch.nonzero(targets != IGNORED, as_tuple=True)
    return targets[trained], trained


def _loss(backbone: Backbone, hidden: Tensor, targets: Tensor) -> Summed:
    """`hidden` (N, D) of the tokens that have to predict `targets` (N,)."""
    losses, is_right = token_losses(backbone, hidden, targets)  # (N,) each
    return Summed(losses.sum(), len(targets), is_right.sum())
