"""What a long-running part reports while it works, and how it is told to stop.

Every long function of the library takes an optional `on_progress` callback. It is called at step
boundaries only, so a callback that raises `CancelledError` stops the work in a clean place; the
exception reaches the caller unchanged. No display here: see `progress_bar.py`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """One report. `step` of `total_steps` are done; `seconds_remaining` is measured, never guessed
    from a model: None until there is something to measure. `valid_loss` (nats per trained token) was measured
    after exactly this step. `micro_batch_tokens` is the most that is computed at once: less than was asked
    for once the memory ran out. `activation_checkpointing`: blocks are computed again. Accuracies are shares
    of trained tokens with the highest logit."""

    stage: str
    step: int
    total_steps: int
    loss: float | None = None
    learning_rate: float | None = None
    tokens_per_second: float | None = None
    seconds_remaining: float | None = None
    valid_loss: float | None = None
    accuracy: float | None = None
    valid_accuracy: float | None = None
    micro_batch_tokens: int | None = None
    activation_checkpointing: bool = False


ProgressCallback = Callable[[Progress], None]


def seconds_remaining(elapsed_seconds: float, steps_done: int, steps_left: int) -> float | None:
    """Linear estimate from the steps done in this run; None before the first one."""
    return None if steps_done <= 0 else elapsed_seconds / steps_done * steps_left


def counted(stage: str, total_steps: int, on_progress: ProgressCallback | None) -> Callable[[int], None]:
    """Takes how many steps of this stage are done since this call, and reports them."""
    started = time.perf_counter()

    def report(done: int) -> None:
        if on_progress is not None:
            left = seconds_remaining(time.perf_counter() - started, done, total_steps - done)
            on_progress(Progress(stage, done, total_steps, seconds_remaining=left))

    return report
