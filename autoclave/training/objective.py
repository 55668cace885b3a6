"""What an optimiser step adds up, behind one small interface.

The loop chooses no loss: it asks its objective for the gradient of a whole step and clips, updates and saves.
An objective cuts the step into micro-batches itself, because some need several passes over all of them
(defences/vaccine.py) or another set of examples (defences/lisa.py).
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from autoclave.data.tokens import IGNORED, Example
from autoclave.errors import InputError
from autoclave.spec import SftSpec, Spec, TrainingMethod, TrainSpec
from autoclave.training.batches import ShuffledSteps
from autoclave.training.loss import TokenLoss, causal_loss, packed_causal_loss
from autoclave.training.micro_batches import MicroBatches
from autoclave.training.ranks import ALONE, Ranks


class StepFigures(NamedTuple):
    """Of one step, on its device and without a graph: `loss` () is the mean cross entropy per trained token
    (nats) of the examples that were trained on, `accuracy` () the share of those tokens that have the highest
    logit, `penalty` () all that the objective adds to the loss, None where it adds nothing.
    `num_trained` tokens have a loss, `num_tokens` were read."""

    loss: Tensor
    accuracy: Tensor
    num_trained: int
    num_tokens: int
    penalty: Tensor | None = None


@dataclass(frozen=True)
class Training:
    """What an objective works with: the model, its trained parameters by name, the examples of the run and
    their order, how examples become forward passes on `device` (packed rows or padded batches), and the loss
    of one such pass. The examples end with their last trained token. `ranks` compute each step together."""

    model: Any
    parameters: dict[str, Tensor]
    examples: Sequence[Example]
    order: ShuffledSteps
    cut: MicroBatches
    packing: bool
    token_loss: TokenLoss
    seed: int
    device: torch.device
    ranks: Ranks = ALONE

    @classmethod
    def of(
        cls,
        model: Any,
        parameters: dict[str, Tensor],
        examples: Sequence[Example],
        spec: TrainSpec,
        *,
        device: torch.device,
        ranks: Ranks = ALONE,
    ) -> Training:
        """The model must be in eval mode while this is called. Raises ModelError if it cannot be packed."""
        order = ShuffledSteps(
            len(examples), batch_size=spec.batch_size, n_epochs=spec.n_epochs, seed=spec.seed
        )
        cut = MicroBatches(spec.micro_batch_tokens, packing=spec.packing, device=device)
        token_loss = packed_causal_loss(model, device=device) if spec.packing else causal_loss
        return cls(
            model, parameters, examples, order, cut, spec.packing, token_loss, spec.seed, device, ranks
        )

    def examples_of(self, data_step: int) -> list[Example]:
        return [self.examples[i] for i in self.order.at(data_step)]

    def other_order(self, num_examples: int) -> ShuffledSteps:
        """The order of a second set of examples, which is not that of the first, whatever their sizes."""
        return ShuffledSteps(
            num_examples, batch_size=self.order.batch_size, n_epochs=1, seed=self.seed + 2**31
        )


class Objective(ABC):
    """One objective of one run. `begin` is called once, before anything else, with the weights the run starts
    from; then `accumulate` once per step."""

    training: Training
    over_ranks: ClassVar[bool] = False
    """Whether `accumulate` computes a rank's share of a step and adds up the gradients of all ranks."""

    @property
    def method(self) -> TrainingMethod:
        """What it was made from."""
        return SftSpec()

    @property
    def longest_row(self) -> int:
        """Tokens of the longest example that it brings itself; 0 without any."""
        return 0

    def begin(self, training: Training) -> None:
        """Raises ModelError or InputError for a model or data that the objective is not defined for."""
        self.training = training

    @property
    def total_steps(self) -> int:
        return self.training.order.total_steps

    def data_steps_before(self, step: int) -> int:
        """How many of the first `step` steps were on the examples of the run."""
        return step

    def examples_of(self, step: int) -> tuple[int, ...]:
        """Places (from 1) of the examples of the run that step `step` (from 0) is on, in no order; none if it
        is on other examples."""
        if not self.is_on_data(step):
            return ()
        return tuple(index + 1 for index in self.training.order.at(self.data_steps_before(step)))

    def is_on_data(self, step: int) -> bool:
        """Whether step `step` (from 0) is on the examples of the run."""
        return self.data_steps_before(step + 1) > self.data_steps_before(step)

    @abstractmethod
    def accumulate(self, step: int) -> StepFigures:
        """Adds the gradient of step `step` (from 0) to `grad` of the trained parameters, whose gradients are
        None or zero before. However the step is cut into micro-batches, the gradient is the same but for
        last bits. It may be called again for the same step after it ran out of memory in the middle."""

    def state(self) -> dict[str, Tensor]:
        """What a resumed run needs besides weights, moments and the step number."""
        return {}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:  # noqa: B027 - most objectives keep nothing
        """Takes back what `state` gave (there may be other tensors beside it)."""

    def identity(self) -> bytes:
        """Joins the fingerprint of the run: every setting and every further example. Empty for plain
        fine-tuning, whose older checkpoints stay valid."""
        return b""


class Supervised(Objective):
    """Plain supervised fine-tuning: the mean of the token loss, one pass."""

    over_ranks = True

    def __init__(self, token_loss: TokenLoss | None = None) -> None:
        self._token_loss = token_loss

    def begin(self, training: Training) -> None:
        if training.packing and self._token_loss is not None:
            raise InputError("packing is for the plain training loss; leave it out with another one.")
        super().begin(training)

    def accumulate(self, step: int) -> StepFigures:
        loss = self._token_loss or self.training.token_loss
        return accumulate_loss(self.training, self.training.examples_of(step), loss)


def accumulate_loss(
    training: Training, examples: Sequence[Example], token_loss: TokenLoss | None = None
) -> StepFigures:
    """Adds the gradient of the mean token loss of these examples, which the ranks share."""
    token_loss = token_loss or training.token_loss
    num_trained = count_trained(examples)
    total, num_right = torch.zeros((2,), device=training.device)
    with training.ranks.together():
        for batch in training.cut(training.ranks.share(examples)):
            loss, _, right = token_loss(training.model, batch)
            torch.autograd.backward(loss / num_trained)
            total += loss.detach()
            num_right += right
    total, num_right = training.ranks.add_up(training.parameters.values(), torch.stack((total, num_right)))
    return StepFigures(
        total / num_trained, num_right / num_trained, num_trained, sum(len(example) for example in examples)
    )


def count_trained(examples: Sequence[Example]) -> int:
    """Tokens with a loss; the first token of an example has none."""
    return sum(int(np.count_nonzero(example.labels[1:] != IGNORED)) for example in examples)


def identity_of(spec: Spec, examples: Sequence[Example] = ()) -> bytes:
    """For `Objective.identity`."""
    digest = hashlib.sha256(spec.model_dump_json().encode())
    for example in examples:
        digest.update(example.input_ids.tobytes())
        digest.update(example.labels.tobytes())
    return digest.digest()
