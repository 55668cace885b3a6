"""Which examples form a step, and how a step is cut into micro-batches. Pure functions of the seed."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch


def epoch_order(epoch: int, *, num_examples: int, seed: int) -> list[int]:
    """Permutation of the examples in one epoch: from the seed and the epoch alone, so that a resumed run
    finds its place from the step number."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    order: list[int] = torch.randperm(num_examples, generator=generator).tolist()
    return order


def micro_batches(lengths: Sequence[int], *, max_tokens: int, overhead_tokens: int) -> list[list[int]]:
    """Cuts one step into forward passes: lists of indices into `lengths`, each sorted by length.

    Minimises the sum over passes of (rows * longest row + `overhead_tokens`), where the overhead is what
    starting a pass costs, in padded tokens; no pass has more than `max_tokens` padded tokens, except a
    single longer row. Exact, by dynamic programming over the length-sorted rows: O(n^2) for n rows.
    """
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    best = [0.0] + [math.inf] * len(order)  # best[j]: cost of the first j rows
    first = [0] * (len(order) + 1)  # first[j]: where the pass that ends before j starts
    for end in range(1, len(order) + 1):
        longest = lengths[order[end - 1]]
        for start in range(end - 1, -1, -1):
            tokens = (end - start) * longest
            if tokens > max_tokens and start != end - 1:
                break
            cost = best[start] + tokens + overhead_tokens
            if cost < best[end]:
                best[end], first[end] = cost, start
    passes = []
    end = len(order)
    while end:
        passes.append(order[first[end] : end])
        end = first[end]
    return passes[::-1]
