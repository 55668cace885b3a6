"""The validation loss while training goes on: when it is measured, which weights were best, when to stop."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from autoclave.data.tokens import Example, collate, length_batches
from autoclave.errors import InputError, NonFiniteLossError
from autoclave.spec import EarlyStopping, TrainSpec
from autoclave.training.loss import causal_loss
from autoclave.training.ranks import ALONE, Ranks

Evaluations = list[tuple[int, float]]
"""(step, nats per trained token), in order."""


class Measured(NamedTuple):
    """Mean cross entropy per trained token (nats), and the share of them that have the highest logit."""

    loss: float
    accuracy: float


def is_due(step: int, *, steps_per_epoch: int, evaluations_per_epoch: int) -> bool:
    """Whether to measure after optimiser step `step`, counted from 1: at the end of each epoch, and before
    it at steps spread evenly; after every step if there are fewer steps than evaluations."""
    position = (step - 1) % steps_per_epoch + 1
    done, before = (p * evaluations_per_epoch // steps_per_epoch for p in (position, position - 1))
    return done > before


def lowest(evaluations: Evaluations) -> tuple[int, float] | None:
    """The first of those with the lowest loss."""
    return min(evaluations, key=lambda evaluation: evaluation[1], default=None)


def should_stop(evaluations: Evaluations, early_stopping: EarlyStopping) -> bool:
    """Whether the last `patience` evaluations were all in vain: none was below the loss to beat by more than
    0 and by at least `min_delta`. The loss to beat is that of the latest evaluation that was not in vain."""
    to_beat, in_vain = math.inf, 0
    for _, loss in evaluations:
        if loss < to_beat and loss <= to_beat - early_stopping.min_delta:
            to_beat, in_vain = loss, 0
        else:
            in_vain += 1
    return in_vain >= early_stopping.patience


class Validation:
    """What is measured on `examples`, and the best weights so far if training may stop early.

    The labels of `examples` say what has a loss; those without any count for nothing. Raises
    InputError if none has one.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        *,
        early_stopping: EarlyStopping | None,
        batch_tokens: int,
        device: torch.device,
        ranks: Ranks = ALONE,
    ) -> None:
        if not examples:
            raise InputError("there is nothing to validate on: no validation example has a trained token.")
        self._examples = examples
        self._early_stopping = early_stopping
        self.batch_tokens = batch_tokens
        self._device = device
        self._ranks = ranks
        self.evaluations: Evaluations = []
        self.best: dict[str, Tensor] = {}

    @classmethod
    def of(
        cls, examples: Sequence[Example], spec: TrainSpec, device: torch.device, ranks: Ranks
    ) -> Validation:
        """Of a run with this spec."""
        return cls(
            examples,
            early_stopping=spec.early_stopping,
            batch_tokens=spec.micro_batch_tokens,
            device=device,
            ranks=ranks,
        )

    @property
    def stop(self) -> bool:
        return self._early_stopping is not None and should_stop(self.evaluations, self._early_stopping)

    def measure(self, model: Any, parameters: dict[str, Tensor], *, step: int) -> Measured:
        """After `step` steps; keeps a copy of `parameters` if the loss is the lowest and they may be
        wanted back. Draws no random numbers. Raises NonFiniteLossError."""
        was_training = model.training
        model.eval()
        try:
            found = measured(
                model,
                self._examples,
                device=self._device,
                batch_tokens=self.batch_tokens,
                ranks=self._ranks,
            )
        finally:
            model.train(was_training)
        if not math.isfinite(found.loss):
            raise NonFiniteLossError(step, found.loss)
        self.evaluations.append((step, found.loss))
        if self._early_stopping is not None and lowest(self.evaluations) == self.evaluations[-1]:
            self.best = {name: parameter.detach().clone() for name, parameter in parameters.items()}
        return found

    def halve(self) -> bool:
        """From now on half of the largest batch at a time. False, and nothing changes, if every batch is a
        single example."""
        lengths = [len(example) for example in self._examples]
        sizes = [
            len(rows) * max(lengths[row] for row in rows)
            for rows in length_batches(lengths, self.batch_tokens)
            if len(rows) > 1
        ]
        if not sizes:
            return False
        self.batch_tokens = max(sizes) // 2
        return True

    def restore_best(self, parameters: dict[str, Tensor]) -> None:
        """Puts the kept weights into `parameters`, if any were kept."""
        for name, tensor in self.best.items():
            parameters[name].data.copy_(tensor)


@torch.no_grad()
def measured(
    model: Any,
    examples: Sequence[Example],
    *,
    device: str | torch.device,
    batch_tokens: int,
    ranks: Ranks = ALONE,
) -> Measured:
    """Over all trained tokens of the examples, with the model as it is; the ranks share the passes."""
    total, num_tokens, num_right = 0.0, 0.0, 0.0
    batches = list(length_batches([len(example) for example in examples], batch_tokens))
    with ranks.together():
        for rows in batches[ranks.rank :: ranks.size]:
            batch = collate([examples[row] for row in rows], pad_token_id=0, device=device)
            loss, count, right = causal_loss(model, batch)
            total += loss.item()
            num_tokens += count
            num_right += int(right)
    total, num_tokens, num_right = ranks.totals(total, num_tokens, num_right)
    return Measured(total / num_tokens, num_right / num_tokens)
