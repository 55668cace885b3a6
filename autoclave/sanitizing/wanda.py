"""The importance of a weight for a set of inputs: its size times the size of what it multiplies."""

from __future__ import annotations

import torch
from torch import Tensor


def wanda_scores(weight: Tensor, norm: Tensor) -> Tensor:
    """S_ij = |W_ij| * norm_j, float32: `weight` (out, in), `norm` (in,) -> (out, in).

    Source: docs/antidote.md 3 (the authors' utils.py:702); `norm` is that of `activations`.
    """
    assert norm.shape == weight.shape[1:], (weight.shape, norm.shape)
    return weight.detach().float().abs() * norm.to(weight.device, torch.float32)
