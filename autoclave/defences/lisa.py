"""Lisa: fine-tuning that alternates between alignment data and the user's, each state held near the other.

Source: arXiv 2405.18641 (Bi-State Optimization with a proximal term) and git-disl/Lisa, trainer.py:81-209.
A run begins with `alignment_steps` steps on alignment data, then come `finetune_steps` on the user's, and so
on; weights, moments and the schedule go on through every switch. A step minimises

    CE(batch of the state) + rho / 2 * || w - w_other ||^2

over all trained weights, where w_other is where the other state last ended (the initial weights, before it
has). As in the authors' code, the second term is left out of the first tenth of all steps.

Defaults are theirs: rho 1 (they take 0.1 for GSM8K), 100 and 900 steps. Their code deviates, and is not
followed: each alignment step throws a batch of the user's away (here they come on top, so that the user's
data is seen `n_epochs` times, also by a run shorter than one alignment state); its clock counts
micro-batches (here optimiser steps).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from autoclave.data.tokens import Example
from autoclave.defences.cost import planned_steps
from autoclave.defences.weights import copy_of, prefixed, without_prefix
from autoclave.errors import InputError
from autoclave.spec import LisaSpec
from autoclave.training.batches import up_to_last_trained
from autoclave.training.objective import Objective, StepFigures, Training, accumulate_loss, identity_of

_ALIGNMENT = "objective.alignment."
_FINETUNE = "objective.finetune."
_PLAIN_SHARE = 0.1


class Lisa(Objective):
    """`penalty` is the proximal term. Memory: two copies of the trained weights."""

    over_ranks = True

    def __init__(self, spec: LisaSpec, alignment_examples: Sequence[Example]) -> None:
        """Raises InputError if there is no alignment example."""
        if not alignment_examples:
            raise InputError("lisa needs alignment data with trained tokens; none is left.")
        self._spec = spec
        self._examples = [up_to_last_trained(example) for example in alignment_examples]

    @property
    def method(self) -> LisaSpec:
        return self._spec

    @property
    def longest_row(self) -> int:
        return max(map(len, self._examples))

    def begin(self, training: Training) -> None:
        super().begin(training)
        self._order = training.other_order(len(self._examples))
        self._alignment_end = copy_of(training.parameters)
        self._finetune_end = copy_of(training.parameters)

    @property
    def total_steps(self) -> int:
        return planned_steps(self._spec, self.training.order.total_steps)

    def data_steps_before(self, step: int) -> int:
        rounds, place = divmod(step, self._spec.alignment_steps + self._spec.finetune_steps)
        return rounds * self._spec.finetune_steps + max(0, place - self._spec.alignment_steps)

    def accumulate(self, step: int) -> StepFigures:
        rounds, place = divmod(step, self._spec.alignment_steps + self._spec.finetune_steps)
        is_alignment = place < self._spec.alignment_steps
        if is_alignment:
            if place == 0 and rounds:
                self._finetune_end = copy_of(self.training.parameters)
            indices = self._order.at(rounds * self._spec.alignment_steps + place)
            examples = [self._examples[i] for i in indices]
        else:
            if place == self._spec.alignment_steps:
                self._alignment_end = copy_of(self.training.parameters)
            examples = self.training.examples_of(self.data_steps_before(step))
        figures = accumulate_loss(self.training, examples)
        if step <= _PLAIN_SHARE * self.total_steps or self._spec.rho == 0:
            return figures
        anchor = self._finetune_end if is_alignment else self._alignment_end
        return figures._replace(penalty=self._pull(anchor))

    @torch.no_grad()
    def _pull(self, anchor: Mapping[str, Tensor]) -> Tensor:
        """Adds the gradient of the proximal term, once for the whole step; returns its value ()."""
        parameters = self.training.parameters
        drifts = [parameter - anchor[name] for name, parameter in parameters.items()]
        for parameter, drift in zip(parameters.values(), drifts, strict=True):
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            parameter.grad.add_(drift, alpha=self._spec.rho)
        return self._spec.rho / 2 * torch.stack([drift.square().sum() for drift in drifts]).sum()

    def state(self) -> dict[str, Tensor]:
        return prefixed(_ALIGNMENT, self._alignment_end) | prefixed(_FINETUNE, self._finetune_end)

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        parameters = self.training.parameters
        self._alignment_end = without_prefix(_ALIGNMENT, tensors, parameters)
        self._finetune_end = without_prefix(_FINETUNE, tensors, parameters)

    def identity(self) -> bytes:
        return identity_of(self._spec, self._examples)
