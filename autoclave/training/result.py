"""What a training run has to say when it ends."""

from __future__ import annotations

from dataclasses import dataclass

from autoclave.training.validation import Evaluations, lowest


@dataclass(frozen=True)
class TrainResult:
    """`losses` are the mean loss per trained token of each step (nats), earlier attempts included, as
    in `trained_tokens` (tokens of the run's examples with a loss, over all epochs) and `seconds` (time in the
    loop).
    `peak_memory_bytes` is the GPU's peak since the loop began, None on CPU. `steps` were taken of
    `planned_steps`; `early_stopped` if training ended by that. `evaluations` are (step, validation loss).
    `micro_batch_tokens` is the most that was computed at once at the end: less than that of the spec if the
    memory ran out. `activation_checkpointing`: whether blocks were computed again in the backward pass, at
    the end. Both None of fused jobs, which share their passes."""

    steps: int
    losses: list[float]
    trained_tokens: int
    seconds: float
    peak_memory_bytes: int | None
    planned_steps: int
    early_stopped: bool
    evaluations: Evaluations
    micro_batch_tokens: int | None = None
    activation_checkpointing: bool | None = None

    @property
    def best(self) -> tuple[int, float] | None:
        """Step and loss of the evaluation with the lowest validation loss."""
        return lowest(self.evaluations)
