"""Which entries of a matrix to prune: the highest scores of each row."""

from __future__ import annotations

import torch
from torch import Tensor

RULE = (
    "per output row of each lora_A and lora_B: the k = cols - floor(cols * (1 - alpha)) entries with the "
    "highest |w| * sqrt(mean over samples of the sum over tokens of x^2); of equal scores the larger column "
    "index first"
)


def pruned_per_row(cols: int, alpha: float) -> int:
    """k = cols - floor(cols * (1 - alpha)), in the authors' floating-point form (utils.py:719-724), so that
    it rounds up and is at least 1: for alpha = 0.01 and 16 columns it is 1, not 0."""
    assert 0.0 < alpha < 1.0, alpha
    return cols - int(cols * (1 - alpha))


def row_mask(scores: Tensor, alpha: float) -> Tensor:
    """True where to prune: `scores` (rows, cols) -> bool (rows, cols), k True in every row.

    The authors sort each row in ascending order, stably, and prune from the end, so of equal scores the
    larger column index is pruned. The order does not depend on alpha, so a larger alpha prunes a superset.
    """
    rows, cols = scores.shape
    kept = cols - pruned_per_row(cols, alpha)
    order = torch.sort(scores, dim=1, stable=True).indices  # (rows, cols)
    mask = torch.zeros((rows, cols), dtype=torch.bool, device=scores.device)
    return mask.scatter_(1, order[:, kept:], True)
