"""Steps and micro-batches: every row once, within bounds, and the cheapest cut."""

import math
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoclave.training.batches import epoch_order, micro_batches, shares

LENGTHS = st.lists(st.integers(1, 50), min_size=1, max_size=9)


def cost(passes: list[list[int]], lengths: list[int], overhead: int) -> int:
    return sum(len(p) * max(lengths[i] for i in p) + overhead for p in passes)


def every_cut(order: list[int]) -> Iterator[list[list[int]]]:
    """All ways to cut the length-sorted rows into consecutive passes: the slow reference."""
    for cuts in range(2 ** (len(order) - 1)):
        passes = [[order[0]]]
        for bit, index in enumerate(order[1:]):
            if cuts >> bit & 1:
                passes.append([index])
            else:
                passes[-1].append(index)
        yield passes


@given(lengths=LENGTHS, max_tokens=st.integers(1, 300), overhead=st.integers(0, 100))
@settings(deadline=None, max_examples=60)
def test_the_cheapest_cut_within_the_bound(lengths: list[int], max_tokens: int, overhead: int) -> None:
    passes = micro_batches(lengths, max_tokens=max_tokens, overhead_tokens=overhead)
    assert sorted(i for p in passes for i in p) == list(range(len(lengths)))
    assert all(len(p) == 1 or len(p) * max(lengths[i] for i in p) <= max_tokens for p in passes)
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    allowed = [
        cut
        for cut in every_cut(order)
        if all(len(p) == 1 or len(p) * lengths[p[-1]] <= max_tokens for p in cut)
    ]
    assert cost(passes, lengths, overhead) == min(cost(cut, lengths, overhead) for cut in allowed)


def test_similar_rows_stay_together_and_a_long_one_goes_alone() -> None:
    assert micro_batches([10, 11, 300, 12], max_tokens=8192, overhead_tokens=128) == [[0, 1, 3], [2]]
    assert micro_batches([10, 11, 12, 12], max_tokens=8192, overhead_tokens=128) == [[0, 1, 2, 3]]


@given(num=st.integers(1, 50), seed=st.integers(0, 1000))
def test_epochs_are_different_repeatable_permutations(num: int, seed: int) -> None:
    first = epoch_order(0, num_examples=num, seed=seed)
    assert sorted(first) == list(range(num))
    assert epoch_order(0, num_examples=num, seed=seed) == first
    if num > 10:
        assert epoch_order(1, num_examples=num, seed=seed) != first
        assert epoch_order(0, num_examples=num, seed=seed + 1) != first


@pytest.mark.parametrize("num_shares", [1, 2, 3, 8])
def test_the_shares_of_a_step_are_the_step(num_shares: int) -> None:
    lengths = [5, 9, 9, 1, 30, 2]
    parts = shares(lengths, num_shares)
    assert len(parts) == num_shares
    assert sorted(index for part in parts for index in part) == list(range(len(lengths)))
    assert all(part == sorted(part) for part in parts)
    tokens = [sum(lengths[i] for i in part) for part in parts]
    assert max(tokens) <= math.ceil(sum(lengths) / num_shares) + max(lengths)


def test_shares_are_even_and_may_be_empty() -> None:
    assert shares([3, 3, 2, 2], 2) == [[0, 2], [1, 3]]
    assert shares([4], 2) == [[0], []]
