"""What a method of the fine-tuning stage costs beside plain training, counted in passes. Torch-free.

A backward pass through a frozen base costs what a forward pass does: only the gradient by its inputs is
needed.
"""

from __future__ import annotations

from autoclave.spec import FinetuneMethod, LdifsSpec, LisaSpec

_PASSES_OF_PLAIN_TRAINING = 2
_PASSES_OF_LDIFS = 3


def planned_steps(method: FinetuneMethod, user_steps: int) -> int:
    """All optimiser steps of a run with `user_steps` of them on the user's data."""
    if isinstance(method, LisaSpec):
        return user_steps + method.alignment_steps * -(-user_steps // method.finetune_steps)
    return user_steps


def relative_cost(method: FinetuneMethod, user_steps: int) -> float:
    """Passes of the run for one of plain training on the same data. A step on alignment data counts as one of
    the user's: how long their conversations are is not known here."""
    assert user_steps > 0, user_steps
    passes = _PASSES_OF_LDIFS if isinstance(method, LdifsSpec) else _PASSES_OF_PLAIN_TRAINING
    return planned_steps(method, user_steps) / user_steps * passes / _PASSES_OF_PLAIN_TRAINING
