"""The importance of a weight for a set of inputs: its size times the size of what it multiplies."""

from __future__ import annotations

import torch
from torch import Tensor


def wanda_scores(weight: Tensor, second_moment: Tensor) -> Tensor:
    """S_ij = |W_ij| * sqrt(v_j), float32: `weight` (out, in), `second_moment` (in,) -> (out, in).

    Source: docs/antidote.md 3 (the authors' utils.py:702): the root of the mean of squares, where
    the paper's text has the mean of norms.
    """
    assert second_moment.shape == weight.shape[1:], (weight.shape, second_moment.shape)
    return weight.detach().float().abs() * torch.sqrt(second_moment.float())
