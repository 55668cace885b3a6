"""Learning rate as a plain function of the step. No state, so a resumed run needs nothing saved."""

from __future__ import annotations

import math
from typing import Literal

Schedule = Literal["constant", "linear", "cosine"]


def learning_rate_at(
    step: int, *, total_steps: int, peak: float, schedule: Schedule, warmup_ratio: float
) -> float:
    """Rate of optimiser step `step`, counted from 0.

    Linear warm-up over the first w = `ceil(warmup_ratio * total_steps)` steps, from peak/(w+1) up, so that
    no step has rate 0; the peak is reached right after it. Then constant, or falling to 0 at `total_steps`
    (linearly, or as half a cosine). Warm-up applies to "constant" too, unlike transformers' scheduler of
    that name.
    """
    assert 0 <= step < total_steps, (step, total_steps)
    warmup_steps = math.ceil(warmup_ratio * total_steps)
    if step < warmup_steps:
        return peak * (step + 1) / (warmup_steps + 1)
    if schedule == "constant":
        return peak
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    if schedule == "linear":
        return peak * (1.0 - progress)
    return peak * 0.5 * (1.0 + math.cos(math.pi * progress))
