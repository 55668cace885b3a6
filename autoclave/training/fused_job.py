"""One of several jobs that train together: everything that is its own (training/fused.py)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig
from torch import Tensor

from autoclave.data.tokens import Example
from autoclave.errors import AutoclaveError, CancelledError, InputError, NonFiniteLossError
from autoclave.modelling.adapter_shape import factor_name
from autoclave.modelling.adapters import fresh_adapter
from autoclave.modelling.lora_products import Factors
from autoclave.progress import Progress, ProgressCallback, seconds_remaining
from autoclave.spec import LoraSpec, TrainSpec
from autoclave.training.batches import ShuffledSteps, up_to_last_trained
from autoclave.training.result import TrainResult
from autoclave.training.schedule import learning_rate_at
from autoclave.training.validation import Measured, Validation, is_due


@dataclass(frozen=True)
class FusedJob:
    """`name` is for messages."""

    name: str
    examples: Sequence[Example]
    lora: LoraSpec
    train: TrainSpec
    validation: Sequence[Example] = ()
    on_progress: ProgressCallback | None = None

    def refuse_what_cannot_be_fused(self) -> None:
        """Raises InputError."""
        if not self.examples:
            raise InputError(f"{self.name}: there is nothing to train on: no example has a trained token.")
        if self.train.early_stopping is not None and not self.validation:
            raise InputError(f"{self.name}: early stopping needs a validation set.")
        if self.lora.lora_dropout:
            raise InputError(
                f"{self.name}: fused jobs cannot have LoRA dropout, which would draw for all of them "
                "together. Set lora_dropout to 0, or train the job alone."
            )


@dataclass(frozen=True)
class Outcome:
    """`state` is the adapter under the names of the PEFT file, `config` its configuration. With an `error`
    the job ended early: CancelledError with the weights of its last step, NonFiniteLossError with those
    before the step that failed. `result.seconds` is the time in which the job ran, among others."""

    state: dict[str, Tensor]
    config: LoraConfig
    result: TrainResult
    error: AutoclaveError | None


class RunningJob:
    def __init__(
        self,
        job: FusedJob,
        state: dict[str, Tensor],
        config: LoraConfig,
        factors: dict[str, Factors],
        *,
        device: torch.device,
    ) -> None:
        self._job, self._state, self._config, self.factors = job, state, config, factors
        self._examples = [up_to_last_trained(example) for example in job.examples]
        spec = job.train
        self._order = ShuffledSteps(
            len(self._examples), batch_size=spec.batch_size, n_epochs=spec.n_epochs, seed=spec.seed
        )
        self._optimizer = torch.optim.AdamW(
            state.values(), lr=spec.learning_rate, weight_decay=spec.weight_decay, fused=True
        )
        self._validation: Validation | None = None
        if job.validation:
            self._validation = Validation(
                [up_to_last_trained(example) for example in job.validation],
                early_stopping=spec.early_stopping,
                batch_tokens=spec.micro_batch_tokens,
                device=device,
            )
        self._step, self._trained_tokens, self._tokens = 0, 0, 0
        self._losses: list[float] = []
        self._accuracy, self._rate = 0.0, 0.0
        self._error: AutoclaveError | None = None
        self.has_ended = False
        self.seconds = 0.0

    @classmethod
    def of(cls, model: Any, job: FusedJob, *, device: torch.device) -> RunningJob:
        """With the adapter that `attach` makes. Raises ModelError, naming the job."""
        try:
            state, config, layers = fresh_adapter(model, job.lora, seed=job.train.seed)
        except InputError as error:
            raise type(error)(f"{job.name}: {error}") from error
        for tensor in state.values():
            tensor.requires_grad_()
        scale = job.lora.lora_alpha / job.lora.r
        factors = {
            name: Factors(state[factor_name(name, "A")], state[factor_name(name, "B")], scale)
            for name in layers
        }
        return cls(job, state, config, factors, device=device)

    def next_examples(self) -> list[Example]:
        return [self._examples[i] for i in self._order.at(self._step)]

    @property
    def steps(self) -> int:
        """That were taken."""
        return self._step

    def forget_gradient(self) -> None:
        """Also of a step that was not finished."""
        self._optimizer.zero_grad(set_to_none=True)

    def clipped_norm(self) -> Tensor:
        """() norm of the gradient before it was clipped."""
        return torch.nn.utils.clip_grad_norm_(self._state.values(), self._job.train.max_grad_norm)

    def update(self, loss: float, norm: float, accuracy: float, num_trained: int, num_tokens: int) -> None:
        """Takes the step whose gradient is there, or ends with NonFiniteLossError."""
        spec = self._job.train
        wrong = next((value for value in (loss, norm) if not math.isfinite(value)), None)
        if wrong is not None:
            places = tuple(index + 1 for index in self._order.at(self._step))
            self._end(NonFiniteLossError(self._step + 1, wrong, places))
            return
        self._rate = learning_rate_at(
            self._step,
            total_steps=self._order.total_steps,
            peak=spec.learning_rate,
            schedule=spec.schedule,
            warmup_ratio=spec.warmup_ratio,
        )
        for group in self._optimizer.param_groups:
            group["lr"] = self._rate
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._step += 1
        self._losses.append(loss)
        self._accuracy = accuracy
        self._trained_tokens += num_trained
        self._tokens += num_tokens

    def after_step(self, model: Any) -> None:
        """Validates, reports, and ends where it is time. The rows of `model` must be all of this job."""
        if self.has_ended:
            return
        try:
            measured = self._validated(model)
            self._report(measured)
        except (NonFiniteLossError, CancelledError) as error:
            self._end(error)
            return
        early = self._validation is not None and self._validation.stop
        if early or self._step == self._order.total_steps:
            if self._validation is not None:
                self._validation.restore_best(self._state)
            self._end(None)

    @property
    def outcome(self) -> Outcome:
        total = self._order.total_steps
        result = TrainResult(
            steps=self._step,
            losses=self._losses,
            trained_tokens=self._trained_tokens,
            seconds=self.seconds,
            peak_memory_bytes=None,
            planned_steps=total,
            early_stopped=self._error is None and self._step < total,
            evaluations=self._validation.evaluations if self._validation else [],
        )
        state = {name: tensor.detach() for name, tensor in self._state.items()}
        return Outcome(state, self._config, result, self._error)

    def _end(self, error: AutoclaveError | None) -> None:
        self._error, self.has_ended = error, True
        self._optimizer.zero_grad(set_to_none=True)

    def _validated(self, model: Any) -> Measured | None:
        if self._validation is None or not is_due(
            self._step,
            steps_per_epoch=self._order.steps_per_epoch,
            evaluations_per_epoch=self._job.train.evaluations_per_epoch,
        ):
            return None
        return self._validation.measure(model, self._state, step=self._step)

    def _report(self, measured: Measured | None) -> None:
        if self._job.on_progress is None:
            return
        left = self._order.total_steps - self._step
        self._job.on_progress(
            Progress(
                "train",
                self._step,
                self._order.total_steps,
                loss=self._losses[-1],
                learning_rate=self._rate,
                tokens_per_second=self._tokens / self.seconds,
                seconds_remaining=seconds_remaining(self.seconds, self._step, left),
                valid_loss=measured and measured.loss,
                accuracy=self._accuracy,
                valid_accuracy=measured and measured.accuracy,
            )
        )
