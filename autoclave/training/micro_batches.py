"""How much of a step is computed at once, and less of it when the memory of the device runs out.

A step gives the same gradient however it is cut (`Objective.accumulate`), so the same step can be tried again
in smaller pieces: half of the tokens of its largest pass, and so on, down to one example a pass.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch

from autoclave.data.tokens import Batch, Example
from autoclave.training.batches import is_cheap_to_halve, step_batches

Result = TypeVar("Result")

# What other parts of torch than its CUDA allocator say, as a plain RuntimeError.
_WORDS = (
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether less at a time may help."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _WORDS)


class MicroBatches:
    """Cuts the examples of a step into forward passes on `device` of at most `max_tokens` tokens, padding
    included (a single longer example is a pass of its own)."""

    def __init__(self, max_tokens: int, *, packing: bool, device: torch.device) -> None:
        self.max_tokens = max_tokens
        self._packing, self._device = packing, device
        self._divisible = 0  # tokens of the largest pass so far that more than one example shares
        self.longest_row = 0

    def __call__(self, examples: Sequence[Example]) -> Iterator[Batch]:
        for batch in step_batches(
            examples, max_tokens=self.max_tokens, packing=self._packing, device=self._device
        ):
            rows, row_tokens = batch.input_ids.shape
            lengths = batch.packed_lengths or (row_tokens,) * rows
            self.longest_row = max(self.longest_row, *lengths)
            if len(lengths) > 1:
                self._divisible = max(self._divisible, sum(lengths))
            yield batch

    def begin_step(self) -> None:
        self._divisible = self.longest_row = 0

    @property
    def cheap_to_halve(self) -> bool:
        """Whether smaller passes cost little (`batches.is_cheap_to_halve`)."""
        return is_cheap_to_halve(self._divisible, self._device)

    def halve(self) -> bool:
        """Half of the largest pass since `begin_step`. False, and nothing changes, if every pass was a single
        example."""
        if not self._divisible:
            return False
        self.max_tokens = max(1, self._divisible // 2)
        return True


def with_less_memory(work: Callable[[], Result], halve: Callable[[], bool]) -> tuple[Result] | None:
    """What `work` gives, in a tuple; it is done again from its start, after `halve`, as long as memory runs
    out. None if `halve` says that less is not possible. Other errors pass through."""
    while True:
        try:
            return (work(),)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        # Outside of the handler: until here the error kept alive what the failed attempt had computed.
        if not halve():
            return None
        free_unused()


def free_unused() -> None:
    """Give back what nobody holds, so that pieces of another size find room."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
