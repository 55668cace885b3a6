"""Whether a model in a batch gives what it gives alone: what every harmful score and every packed step need.

Found out by running a few tokens both ways, so that no list of architectures has to be right.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from autoclave.errors import ModelError
from autoclave.modelling.backbone import Backbone, backbone_of
from autoclave.modelling.packing import PackedBackbone, Separation

# Relative to the largest hidden state. What leaks from padding or a neighbour is far larger.
_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}
_LOW_PRECISION = 0.05
_LENGTHS = (9, 4)


@torch.no_grad()
def verify_padding(model: Any) -> None:
    """Raises ModelError, naming the architecture, if a prompt that is padded on the left gives other hidden
    states than alone: batched answers would not be those of the model. Three passes of nine tokens; leaves
    the model's mode as it was."""
    backbone = backbone_of(model)
    was_training = model.training
    model.eval()
    try:
        long, short = (_ids(backbone, length) for length in _LENGTHS)
        padding = long.shape[1] - short.shape[1]
        ids = torch.cat((long, torch.nn.functional.pad(short, (padding, 0))))  # (2, T)
        mask = torch.ones_like(ids)
        mask[1, :padding] = 0
        together = _last(backbone, ids, mask)
        alone = torch.cat([_last(backbone, row, torch.ones_like(row)) for row in (long, short)])  # (2, D)
    finally:
        model.train(was_training)
    difference = (together - alone).abs().max().item()
    allowed = _TOLERANCE.get(backbone.head.weight.dtype, _LOW_PRECISION) * alone.abs().max().item()
    if not difference <= allowed:
        name = type(model.get_base_model() if hasattr(model, "get_base_model") else model).__name__
        raise ModelError(
            f"{name} is not supported: a padded prompt gives other hidden states than alone (they differ by "
            f"{difference:.3g}), so that answers in batches would not be its own."
        )


def how_it_packs(model: Any) -> Separation | None:
    """The way in which packed examples are kept apart, None if there is none. The model must be in eval
    mode."""
    backbone = backbone_of(model)
    try:
        return PackedBackbone(backbone, backbone.head.weight.device).separation
    except ModelError:
        return None


def _ids(backbone: Backbone, length: int) -> Tensor:
    weight = backbone.head.weight
    ids: Tensor = (torch.arange(length, device=weight.device)[None] * 7 + length) % weight.shape[0]  # (1, T)
    return ids


def _last(backbone: Backbone, ids: Tensor, mask: Tensor) -> Tensor:
    """(B, T) -> (B, D): the state of the last token, computed as `evaluation.generate` starts."""
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    output = backbone.decoder(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False)
    hidden: Tensor = output.last_hidden_state[:, -1].float()
    return hidden
