"""Masks: the counts, ties, nesting, and how the rules relate."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps

from autoclave.sanitizing.masks import RULES, pruned_count, select
from autoclave.sanitizing.wanda import wanda_scores
from autoclave.spec import MaskRule

MATRIX = nps.arrays(
    np.float32, st.tuples(st.integers(1, 4), st.integers(1, 20)), elements=st.sampled_from([0, 1, 2])
)
MATRICES = st.lists(MATRIX, min_size=1, max_size=4)
ALPHA = st.floats(0.001, 0.999)
RULE = st.sampled_from(sorted(RULES))


def selected(matrices: list[np.ndarray], alpha: float, rule: MaskRule) -> list[np.ndarray]:
    # Names that sort the other way round: the order of the matrices counts, not that of the names.
    scores = {f"{9 - i}": torch.from_numpy(matrix) for i, matrix in enumerate(matrices)}
    masks = select(scores, alpha, rule)
    assert list(masks) == list(scores)
    return [mask.numpy() for mask in masks.values()]


def highest(values: list[float], alpha: float) -> list[bool]:
    """Plainly: sort by score, then position; prune from the end."""
    order = sorted(range(len(values)), key=lambda i: (values[i], i))
    pruned = set(order[len(values) - pruned_count(len(values), alpha) :])
    return [i in pruned for i in range(len(values))]


@pytest.mark.parametrize(
    ("cols", "counts"),
    [(4096, [41, 205, 410, 820]), (256, [3, 13, 26, 52]), (16, [1, 1, 2, 4]), (8, [1, 1, 1, 2])],
)
def test_counts_of_the_published_table(cols: int, counts: list[int]) -> None:
    """docs/antidote.md 4."""
    assert [pruned_count(cols, alpha) for alpha in (0.01, 0.05, 0.1, 0.2)] == counts


def test_ties_prune_the_later_entry() -> None:
    first, second = np.float32([[1, 1, 1, 1], [2, 1, 2, 0]]), np.float32([[2, 1]])
    assert [mask.tolist() for mask in selected([first, second], 0.25, "row")] == [
        [[False, False, False, True], [False, False, True, False]],
        [[True, False]],
    ]
    assert [mask.tolist() for mask in selected([first, second], 0.25, "matrix")] == [
        [[False, False, False, False], [True, False, True, False]],
        [[True, False]],
    ]
    assert [mask.tolist() for mask in selected([first, second], 0.2, "global")] == [
        [[False, False, False, False], [False, False, True, False]],
        [[True, False]],
    ]


@given(matrices=MATRICES, alpha=ALPHA)
@settings(max_examples=150, deadline=None)
def test_the_highest_of_each_row_of_each_matrix_and_of_all(matrices: list[np.ndarray], alpha: float) -> None:
    for scores, mask in zip(matrices, selected(matrices, alpha, "row"), strict=True):
        assert mask.tolist() == [highest(row.tolist(), alpha) for row in scores]
    for scores, mask in zip(matrices, selected(matrices, alpha, "matrix"), strict=True):
        assert mask.ravel().tolist() == highest(scores.ravel().tolist(), alpha)
    everything = np.concatenate([scores.ravel() for scores in matrices])
    masks = np.concatenate([mask.ravel() for mask in selected(matrices, alpha, "global")])
    assert masks.tolist() == highest(everything.tolist(), alpha)


@given(matrices=MATRICES, alphas=st.tuples(ALPHA, ALPHA), rule=RULE)
@settings(max_examples=150, deadline=None)
def test_masks_are_nested(matrices: list[np.ndarray], alphas: tuple[float, float], rule: MaskRule) -> None:
    weak, strong = (selected(matrices, alpha, rule) for alpha in sorted(alphas))
    assert not any((a & ~b).any() for a, b in zip(weak, strong, strict=True))


@given(matrices=MATRICES, alpha=ALPHA)
@settings(max_examples=100, deadline=None)
def test_where_the_rules_are_one(matrices: list[np.ndarray], alpha: float) -> None:
    single_rows = [matrix[:1] for matrix in matrices]
    assert all(
        np.array_equal(a, b)
        for a, b in zip(
            selected(single_rows, alpha, "row"), selected(single_rows, alpha, "matrix"), strict=True
        )
    )
    (a,), (b,) = selected(matrices[:1], alpha, "matrix"), selected(matrices[:1], alpha, "global")
    assert np.array_equal(a, b)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_scores_that_cannot_be_ranked(rule: MaskRule, value: float) -> None:
    with pytest.raises(AssertionError, match="non-finite scores in b"):
        select({"a": torch.ones(2, 2), "b": torch.tensor([[1.0, value]])}, 0.5, rule)


def test_scores() -> None:
    scores = wanda_scores(torch.tensor([[-2.0, 3.0], [0.5, 0.0]]), torch.tensor([2.0, 3.0]))
    assert scores.tolist() == [[4.0, 9.0], [1.0, 0.0]]
