"""Row masks: the count per row, ties, nesting."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps

from autoclave.sanitizing.masks import pruned_per_row, row_mask
from autoclave.sanitizing.wanda import wanda_scores

SCORES = nps.arrays(
    np.float32, st.tuples(st.integers(1, 4), st.integers(1, 20)), elements=st.sampled_from([0, 1, 2])
)
ALPHA = st.floats(0.001, 0.999)


@pytest.mark.parametrize(
    ("cols", "counts"),
    [(4096, [41, 205, 410, 820]), (256, [3, 13, 26, 52]), (16, [1, 1, 2, 4]), (8, [1, 1, 1, 2])],
)
def test_counts_of_the_published_table(cols: int, counts: list[int]) -> None:
    """docs/antidote.md 4."""
    assert [pruned_per_row(cols, alpha) for alpha in (0.01, 0.05, 0.1, 0.2)] == counts


def test_ties_prune_the_larger_column_index() -> None:
    assert row_mask(torch.tensor([[1.0, 1.0, 1.0, 1.0], [2.0, 1.0, 2.0, 0.0]]), 0.25).tolist() == [
        [False, False, False, True],
        [False, False, True, False],
    ]


@given(scores=SCORES, alpha=ALPHA)
@settings(max_examples=200, deadline=None)
def test_the_highest_of_each_row(scores: np.ndarray, alpha: float) -> None:
    mask = row_mask(torch.from_numpy(scores), alpha).numpy()
    k = pruned_per_row(scores.shape[1], alpha)
    for row, pruned in zip(scores, mask, strict=True):
        by_importance = sorted(range(len(row)), key=lambda j: (row[j], j))
        assert set(np.flatnonzero(pruned)) == set(by_importance[len(row) - k :])


@given(scores=SCORES, alphas=st.tuples(ALPHA, ALPHA))
@settings(max_examples=200, deadline=None)
def test_masks_are_nested(scores: np.ndarray, alphas: tuple[float, float]) -> None:
    weak, strong = (row_mask(torch.from_numpy(scores), alpha) for alpha in sorted(alphas))
    assert not (weak & ~strong).any()


def test_scores() -> None:
    scores = wanda_scores(torch.tensor([[-2.0, 3.0], [0.5, 0.0]]), torch.tensor([4.0, 9.0]))
    assert scores.tolist() == [[4.0, 9.0], [1.0, 0.0]]
