"""Which examples form a step, and how a step is cut into micro-batches. Pure functions of the seed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from autoclave.data.tokens import IGNORED, Batch, Example, collate, pack
from autoclave.modelling.packing import pack_rows

# What starting one more forward and backward pass costs, in padded tokens: a GPU is not full below a
# few thousand, two CPU cores are soon. Only speed depends on it.
_PASS_OVERHEAD_TOKENS = {"cpu": 128, "cuda": 2048}


def epoch_order(epoch: int, *, num_examples: int, seed: int) -> list[int]:
    """Permutation of the examples in one epoch: from the seed and the epoch alone, so that a resumed run
    finds its place from the step number."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    order: list[int] = torch.randperm(num_examples, generator=generator).tolist()
    return order


class ShuffledSteps:
    """Which examples form each step: the epochs' permutations, `batch_size` at a time, the last step of an
    epoch smaller."""

    def __init__(self, num_examples: int, *, batch_size: int, n_epochs: int, seed: int) -> None:
        self._num_examples, self.batch_size, self._seed = num_examples, batch_size, seed
        self.steps_per_epoch = math.ceil(num_examples / batch_size)
        self.total_steps = n_epochs * self.steps_per_epoch
        self._epoch = -1
        self._order: list[int] = []

    def at(self, step: int) -> list[int]:
        """Indices of the examples of step `step`, counted from 0; epochs never end."""
        epoch, position = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = epoch_order(epoch, num_examples=self._num_examples, seed=self._seed)
        return self._order[position * self.batch_size : (position + 1) * self.batch_size]


def step_batches(
    examples: Sequence[Example], *, max_tokens: int, packing: bool, device: torch.device
) -> Iterator[Batch]:
    """The forward passes of one step, on `device`: padded batches, or with `packing` one packed row each,
    of at most `max_tokens` tokens (a single longer example is a pass of its own)."""
    if packing:
        # The last token of an example is no input (`tokens.pack`).
        for row in pack_rows([len(example) - 1 for example in examples], max_tokens):
            yield pack([examples[i] for i in row], device=device)
        return
    overhead_tokens = _PASS_OVERHEAD_TOKENS.get(device.type, 0)
    lengths = [len(example) for example in examples]
    for rows in micro_batches(lengths, max_tokens=max_tokens, overhead_tokens=overhead_tokens):
        # Padding is never seen (backbone.py), so any token id will do for it.
        yield collate([examples[i] for i in rows], pad_token_id=0, device=device)


def shares(lengths: Sequence[int], num_shares: int) -> list[list[int]]:
    """Cuts one step into `num_shares` lists of indices, ascending, with about as many tokens each: the
    longest row that is left goes where there is least. Some are empty if there are fewer rows."""
    parts: list[list[int]] = [[] for _ in range(num_shares)]
    tokens = [0] * num_shares
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        place = tokens.index(min(tokens))
        parts[place].append(index)
        tokens[place] += lengths[index]
    return [sorted(part) for part in parts]


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


def is_cheap_to_halve(num_tokens: int, device: torch.device) -> bool:
    """Whether two passes instead of one of `num_tokens` cost less than computing every block again, which is
    about half of a step more: with frozen weights a forward and a backward pass are alike."""
    return num_tokens > 2 * _PASS_OVERHEAD_TOKENS.get(device.type, 0)


def up_to_last_trained(example: Example) -> Example:
    """Tokens after the last trained one change no loss, so they need not be computed."""
    (trained,) = np.nonzero(example.labels != IGNORED)
    end = int(trained[-1]) + 1 if trained.size else 0
    assert end > 1, "an example without a trained token after its first token"
    return Example(example.input_ids[:end], example.labels[:end])
