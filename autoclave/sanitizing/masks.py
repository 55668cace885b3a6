"""Which entries to prune: those with the highest scores, of each row, of each matrix or of them all."""

from __future__ import annotations

import torch
from torch import Tensor

from autoclave.spec import MaskRule

RULES: dict[MaskRule, str] = {
    "row": "of each output row of each lora_A and lora_B, the k = cols - floor(cols * (1 - alpha)) entries "
    "with the highest scores; of equal scores the larger column index first",
    "matrix": "of each lora_A and lora_B, the k = n - floor(n * (1 - alpha)) of its n entries with the "
    "highest scores; of equal scores the larger row-major index first",
    "global": "of all lora_A and lora_B together, the k = n - floor(n * (1 - alpha)) of their n entries "
    "with the highest scores; of equal scores that of the later matrix, then of the larger row-major "
    "index, first",
}


def pruned_count(entries: int, alpha: float) -> int:
    """k = entries - floor(entries * (1 - alpha)), in the authors' floating-point form (utils.py:719-724), so
    that it rounds up and is at least 1: for alpha = 0.01 and 16 entries it is 1, not 0."""
    assert 0.0 < alpha < 1.0, alpha
    return entries - int(entries * (1 - alpha))


def select(scores: dict[str, Tensor], alpha: float, rule: MaskRule) -> dict[str, Tensor]:
    """True where to prune: finite scores (rows, cols) by name -> bool (rows, cols) by name, on the same
    devices. The order of the names is that of the matrices in the model.

    "row" is the authors' code, "global" the paper's text (docs/antidote.md 4), "matrix" lies between them.
    The order of the entries does not depend on alpha, so under each rule a larger alpha prunes a superset.
    """
    for name, matrix in scores.items():
        assert torch.isfinite(matrix).all(), f"non-finite scores in {name}"
    if rule == "row":
        return {name: _row_mask(matrix, alpha) for name, matrix in scores.items()}
    if rule == "matrix":
        return {
            name: _row_mask(matrix.reshape(1, -1), alpha).view(matrix.shape)
            for name, matrix in scores.items()
        }
    assert rule == "global", rule
    everything = torch.cat([matrix.reshape(-1) for matrix in scores.values()])  # (entries,)
    sizes = [matrix.numel() for matrix in scores.values()]
    parts = torch.split(_row_mask(everything[None], alpha)[0], sizes)
    return {name: part.view(scores[name].shape) for name, part in zip(scores, parts, strict=True)}


def _row_mask(scores: Tensor, alpha: float) -> Tensor:
    """(rows, cols) -> bool (rows, cols), `pruned_count` True in every row. The authors sort each row in
    ascending order, stably, and prune from the end, so of equal scores the later one is pruned."""
    rows, cols = scores.shape
    kept = cols - pruned_count(cols, alpha)
    order = torch.sort(scores, dim=1, stable=True).indices  # (rows, cols)
    mask = torch.zeros((rows, cols), dtype=torch.bool, device=scores.device)
    return mask.scatter_(1, order[:, kept:], True)
