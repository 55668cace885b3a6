"""Supervised loss on trained tokens only: the output head never sees the other positions.

An objective is any function `(model, batch) -> (summed loss, number of trained tokens)`. The loop
divides by the tokens of the whole step, so objectives sum and never average; other objectives
(perturbed weights, proximal terms) fit the same place.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from autoclave.data.tokens import IGNORED, Batch
from autoclave.modelling.backbone import backbone_of

Objective = Callable[[Any, Batch], tuple[Tensor, int]]


def causal_loss(model: Any, batch: Batch) -> tuple[Tensor, int]:
    """Summed cross entropy (nats, computed in float32) of the trained tokens, and their number.

    Equal to the sum over full logits. The last token of a row is never an input, because nothing after it is
    predicted.
    """
    backbone = backbone_of(model)
    targets = batch.labels[:, 1:].flatten()  # (B * (T-1),)
    (trained,) = torch.nonzero(targets != IGNORED, as_tuple=True)  # (N,)
    hidden = backbone.hidden_states(batch.input_ids[:, :-1]).flatten(0, 1)  # (B * (T-1), D)
    logits = backbone.head(hidden[trained])  # (N, V)
    loss = functional.cross_entropy(logits.float(), targets[trained], reduction="sum")  # ()
    return loss, len(trained)
