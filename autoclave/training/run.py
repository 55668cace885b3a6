"""One run over its steps: what changes from step to step, how to take one, and what a checkpoint keeps."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Any

import torch

from autoclave.data.tokens import Example
from autoclave.errors import InputError, NonFiniteLossError, OutOfMemoryError
from autoclave.memory import MemoryEstimate
from autoclave.progress import Progress, ProgressCallback, seconds_remaining
from autoclave.spec import TrainSpec
from autoclave.training.activation_memory import ActivationMemory, Room, free_bytes
from autoclave.training.batches import up_to_last_trained
from autoclave.training.checkpoint import (
    CheckpointStore,
    TrainState,
    generator_states,
    restore_generators,
    run_fingerprint,
)
from autoclave.training.micro_batches import Result, with_less_memory
from autoclave.training.model_memory import estimate_of_model, in_words
from autoclave.training.objective import Objective, StepFigures, Supervised, Training
from autoclave.training.ranks import Ranks
from autoclave.training.schedule import learning_rate_at
from autoclave.training.validation import Measured, Validation, is_due


class Run:
    """`loop.finetune` says what a step is, and what is raised."""

    def __init__(
        self,
        model: Any,
        examples: Sequence[Example],
        spec: TrainSpec,
        *,
        validation: Sequence[Example],
        device: torch.device,
        objective: Objective | None,
        ranks: Ranks,
    ) -> None:
        self.model, self.spec, self.device, self.ranks = model, spec, device, ranks
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        assert self.parameters, "no parameter of the model requires gradients"
        self.examples = [up_to_last_trained(example) for example in examples]
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(), lr=spec.learning_rate, weight_decay=spec.weight_decay, fused=True
        )
        training = Training.of(model, self.parameters, self.examples, spec, device=device, ranks=ranks)
        self.micro_batches = training.cut
        self.activations = ActivationMemory(model, spec.activation_checkpointing)
        self.steps_per_epoch = training.order.steps_per_epoch
        self.objective = objective or Supervised()
        self.objective.begin(training)
        self.total_steps = self.objective.total_steps
        self.validation_examples = [up_to_last_trained(example) for example in validation]
        self.validation = Validation.of(self.validation_examples, spec, device, ranks) if validation else None
        self.step = 0
        self.losses: list[float] = []
        self.accuracy: float | None = None
        self.trained_tokens = 0
        self.seconds = 0.0

    def to_the_end(
        self, on_progress: ProgressCallback | None, store: CheckpointStore | None, every_steps: int
    ) -> None:
        seconds_before, first_step, tokens = self.seconds, self.step, 0
        started = time.perf_counter()
        stop = False
        while self.step < self.total_steps and not stop:
            rate = learning_rate_at(
                self.step,
                total_steps=self.total_steps,
                peak=self.spec.learning_rate,
                schedule=self.spec.schedule,
                warmup_ratio=self.spec.warmup_ratio,
            )
            tokens += self.take_step(rate)
            valid = self.validated()
            stop = self.validation is not None and self.validation.stop
            elapsed = time.perf_counter() - started
            self.seconds = seconds_before + elapsed
            left = seconds_remaining(elapsed, self.step - first_step, self.total_steps - self.step)
            progress = Progress(
                "train",
                self.step,
                self.total_steps,
                loss=self.losses[-1],
                learning_rate=rate,
                tokens_per_second=tokens / elapsed,
                seconds_remaining=left,
                valid_loss=valid and valid.loss,
                accuracy=self.accuracy,
                valid_accuracy=valid and valid.accuracy,
                micro_batch_tokens=self.micro_batches.max_tokens,
                activation_checkpointing=self.activations.is_checkpointed,
            )
            with self.ranks.together():
                if not self.ranks.is_first:
                    continue
                if store and self.step % every_steps == 0 and self.step < self.total_steps and not stop:
                    store.save(self.state())
                if on_progress:
                    on_progress(progress)
        if self.validation:
            self.validation.restore_best(self.parameters)

    def validated(self) -> Measured | None:
        """On the validation set, if that is to be measured after this step."""
        if (
            self.validation is None
            or not self.objective.is_on_data(self.step - 1)
            or not is_due(
                self.objective.data_steps_before(self.step),
                steps_per_epoch=self.steps_per_epoch,
                evaluations_per_epoch=self.spec.evaluations_per_epoch,
            )
        ):
            return None
        validation, step = self.validation, self.step

        def measure() -> Measured:
            validation.batch_tokens = min(validation.batch_tokens, self.micro_batches.max_tokens)
            return validation.measure(self.model, self.parameters, step=step)

        return self.fitting(measure, halve=lambda: self.ranks.any(validation.halve()))

    def take_step(self, rate: float) -> int:
        """One optimiser step at this learning rate. Returns the number of tokens read."""
        figures = self.accumulated()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.spec.max_grad_norm)
        values = torch.stack((figures.loss, norm, figures.accuracy))
        loss_value, norm_value, self.accuracy = values.tolist()  # waits for the GPU once
        for value in (loss_value, norm_value):
            if not math.isfinite(value):
                raise NonFiniteLossError(self.step + 1, value, self.objective.examples_of(self.step))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.fitting(self.optimizer.step, halve=lambda: False)
        if self.objective.is_on_data(self.step):
            self.trained_tokens += figures.num_trained
        self.step += 1
        self.losses.append(loss_value)
        return figures.num_tokens

    def accumulated(self) -> StepFigures:
        """The gradient of this step, with as many tries as the memory needs."""
        generators = generator_states(self.device)

        def accumulate() -> StepFigures:
            self.optimizer.zero_grad(set_to_none=True)
            self.micro_batches.begin_step()
            self.ranks.seed_step(self.spec.seed, self.step)
            return self.objective.accumulate(self.step)

        def halve() -> bool:
            restore_generators(generators, self.device)
            cut = self.micro_batches
            return self.ranks.any(self.activations.do_with_less(cut.halve, cheap_to_halve=cut.cheap_to_halve))

        return self.fitting(accumulate, halve=halve)

    def fitting(self, work: Callable[[], Result], *, halve: Callable[[], bool]) -> Result:
        """Raises OutOfMemoryError if halving does not help."""
        done = with_less_memory(work, halve)
        if done is not None:
            return done[0]
        longest_row = self.micro_batches.longest_row
        estimate = self.estimate(longest_row, self.activations.is_checkpointed)
        words = None if estimate is None else in_words(estimate)
        if words is not None and self.spec.activation_checkpointing == "off":
            words += " It would be less with activation_checkpointing, which is off."
        raise OutOfMemoryError(self.step + 1, longest_row, words)

    def estimate(self, longest_row: int, checkpointing: bool) -> MemoryEstimate | None:
        return estimate_of_model(
            self.model,
            self.spec,
            self.objective.method,
            longest_row=longest_row,
            device=self.device,
            checkpointing=checkpointing,
        )

    def choose_memory(self, allowed: int | None) -> None:
        free = free_bytes(self.device)
        if self.device.type == "cpu":  # all ranks share it
            free, allowed = (None if n is None else n // self.ranks.size for n in (free, allowed))
        longest_row = max(self.objective.longest_row, *map(len, self.examples))
        self.activations.choose(Room(free, allowed), partial(self.estimate, longest_row))
        self.activations.go_on(self.ranks.any(self.activations.is_checkpointed))

    def state(self) -> TrainState:
        tensors = generator_states(self.device)
        for name, parameter in self.parameters.items():
            moments = self.optimizer.state[parameter]
            tensors[f"adapter.{name}"] = parameter.detach()
            tensors[f"exp_avg.{name}"] = moments["exp_avg"]
            tensors[f"exp_avg_sq.{name}"] = moments["exp_avg_sq"]
        tensors |= self.objective.state()
        evaluations = list(self.validation.evaluations) if self.validation else []
        if self.validation:
            tensors |= {f"best.{name}": tensor for name, tensor in self.validation.best.items()}
        return TrainState(
            self.step,
            self.losses,
            self.trained_tokens,
            self.seconds,
            self.fingerprint,
            tensors,
            evaluations,
            self.micro_batches.max_tokens,
            self.activations.is_checkpointed,
        )

    def restore(self, saved: TrainState) -> None:
        if saved.fingerprint != self.fingerprint:
            raise InputError(
                "the checkpoint belongs to another run (other data, hyper-parameters or adapter shape). "
                "Use the folder of this run, or delete the checkpoint to train from the start."
            )
        for name, parameter in self.parameters.items():
            parameter.data.copy_(saved.tensors[f"adapter.{name}"])
            self.optimizer.state[parameter] = {
                "step": torch.tensor(float(saved.step), device=parameter.device),
                "exp_avg": saved.tensors[f"exp_avg.{name}"].to(parameter.device),
                "exp_avg_sq": saved.tensors[f"exp_avg_sq.{name}"].to(parameter.device),
            }
        if self.validation:
            self.validation.evaluations = list(saved.evaluations)
            self.validation.best = {
                name: saved.tensors[f"best.{name}"].to(parameter.device)
                for name, parameter in self.parameters.items()
                if f"best.{name}" in saved.tensors
            }
        if saved.micro_batch_tokens is not None:
            self.micro_batches.max_tokens = min(saved.micro_batch_tokens, self.micro_batches.max_tokens)
        self.activations.go_on(saved.activation_checkpointing)
        self.objective.restore(saved.tensors)
        restore_generators(saved.tensors, self.device)
        self.step, self.losses = saved.step, list(saved.losses)
        self.trained_tokens, self.seconds = saved.trained_tokens, saved.seconds

    @cached_property
    def fingerprint(self) -> str:
        # A validation set that stops nothing changes no weight.
        deciding = self.validation_examples if self.spec.early_stopping else []
        return run_fingerprint(
            self.spec, self.parameters, [*self.examples, *deciding], objective=self.objective.identity()
        )
