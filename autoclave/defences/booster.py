"""Booster: alignment after which a step on harmful data gains little.

Source: arXiv 2409.01586 and git-disl/Booster, trainer.py:272-389. With f the loss of a batch of safe examples
and h that of a batch of harmful ones, in an order of their own, the step minimises

    f(w) + strength * ( h(w) - h(w - alpha * grad h(w) / ||grad h(w)||) )

taking the gradient of the last term as grad h at the moved weights (no second derivatives): three forward and
three backward passes. The norm is over all trained weights, plus 1e-7. Defaults are theirs: strength (the
paper's lambda) 5, alpha 0.1; they also clip gradients to norm 1, as the loop does by default.

Their code deviates, and is not followed: it clears all gradients within a step, so that gradient
accumulation loses micro-batches; it moves the weights back by adding what it subtracted, which rounds (here
they are put back); its two passes over harmful data draw different dropout (here the same). Their user
fine-tuning goes on with the same LoRA; merged into a base and followed by a new LoRA, as here, the effect
is weaker (Booster issue 2).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

from autoclave.data.tokens import Example
from autoclave.defences.passes import rehearsal
from autoclave.defences.vaccine import global_norm
from autoclave.defences.weights import replaced
from autoclave.errors import InputError
from autoclave.spec import BoosterSpec
from autoclave.training.batches import up_to_last_trained
from autoclave.training.objective import Objective, StepFigures, Training, accumulate_loss, identity_of


class Booster(Objective):
    """`loss` is f, `penalty` the rest. Memory: two gradients and one copy of the trained weights."""

    def __init__(self, spec: BoosterSpec, harmful_examples: Sequence[Example]) -> None:
        """Raises InputError if there is no harmful example."""
        if not harmful_examples:
            raise InputError("booster needs harmful data with trained tokens; none is left.")
        self._spec = spec
        self._harmful = [up_to_last_trained(example) for example in harmful_examples]

    @property
    def method(self) -> BoosterSpec:
        return self._spec

    @property
    def longest_row(self) -> int:
        return max(map(len, self._harmful))

    def begin(self, training: Training) -> None:
        super().begin(training)
        self._order = training.other_order(len(self._harmful))

    def accumulate(self, step: int) -> StepFigures:
        parameters = self.training.parameters
        harmful = [self._harmful[i] for i in self._order.at(step)]
        loss, gradients = self._harmful_gradients(harmful, rehearsing=True)
        length = global_norm(list(gradients.values())) + 1e-7
        with torch.no_grad():
            moved = {
                name: parameter - self._spec.alpha / length * gradients[name]
                for name, parameter in parameters.items()
            }
        with replaced(parameters, moved):
            loss_after, gradients_after = self._harmful_gradients(harmful, rehearsing=False)
        figures = accumulate_loss(self.training, self.training.examples_of(step))
        for name, parameter in parameters.items():
            assert parameter.grad is not None, name
            parameter.grad.add_(gradients[name] - gradients_after[name], alpha=self._spec.strength)
        return figures._replace(penalty=self._spec.strength * (loss - loss_after))

    def identity(self) -> bytes:
        return identity_of(self._spec, self._harmful)

    def _harmful_gradients(
        self, examples: Sequence[Example], *, rehearsing: bool
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean loss () and its gradient by name; leaves no gradient behind."""
        device = self.training.device
        with rehearsal(device) if rehearsing else nullcontext():
            loss = accumulate_loss(self.training, examples).loss
        gradients: dict[str, Tensor] = {}
        for name, parameter in self.training.parameters.items():
            assert parameter.grad is not None, name
            gradients[name], parameter.grad = parameter.grad, None
        return loss, gradients
