"""RepNoise: alignment that turns what the model represents of harmful answers into noise.

Source: arXiv 2405.14577 and domenicrosati/representation-noising, loss.py:74-130. Of each prompt there is a
refusal and a harmful answer. With tokens of the harmful answer counted where it differs from the refusal, the
step minimises

    L + beta * N - alpha * log H

L: mean cross entropy of the refusals. H: 1 + the mean, over the embeddings and every layer's output, of the
mean cross entropy of the harmful tokens read off it through the final norm and the head. N: the mean over
layers of the maximum mean discrepancy (five Gaussian kernels) between the MLP outputs at those tokens, a
flattened answer being one sample, and standard normal noise. Defaults are theirs: alpha 1, beta 0.001.

Both H and N are of the whole step and do not split into micro-batches. So a first pass without a graph finds
H and the gradient of N by the MLP outputs; the second one needs nothing but those. Three forward passes, two
backward.

Their code deviates, and is not followed: logits where the token before is not counted are set to zero;
token 0 is never a target; the last state goes through the final norm twice and counts twice; padding of the
shorter answer is counted; of the refusal only tokens that differ are trained. Antidote's copy
(repnoise_loss.py:56-185) has alpha 0.1, pairs unrelated batches and leaves the hidden states out. As H
alone can grow without end, high learning rates destroy the model: their README asks for a search.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from autoclave.data.tokens import IGNORED, Batch, Example
from autoclave.defences.passes import rehearsal
from autoclave.errors import InputError, ModelError
from autoclave.modelling.backbone import backbone_of
from autoclave.modelling.layer_parts import layer_parts, outputs_of
from autoclave.spec import RepnoiseSpec
from autoclave.training.batches import up_to_last_trained
from autoclave.training.objective import (
    Objective,
    StepFigures,
    Training,
    accumulate_loss,
    count_trained,
    identity_of,
)

_NUM_KERNELS = 5


class Repnoise(Objective):
    """`loss` is L, `penalty` the rest. Memory: the MLP outputs of all layers for the harmful answers of the
    whole step, three times; a smaller batch needs less, smaller micro-batches do not."""

    def __init__(
        self, spec: RepnoiseSpec, refusals: Sequence[Example], harmful_examples: Sequence[Example]
    ) -> None:
        """`harmful_examples[i]` answers the prompt of `refusals[i]`, the examples of the run. Raises
        InputError if there are none, or they are no pairs."""
        if not harmful_examples:
            raise InputError("repnoise needs harmful data with trained tokens; none is left.")
        if len(refusals) != len(harmful_examples):
            raise InputError(
                f"repnoise needs pairs, but there are {len(refusals)} refusals and {len(harmful_examples)} "
                "harmful answers. Line i of both files must have the same prompt."
            )
        self._spec = spec
        self._harmful = [
            differing(refusal, harmful, line)
            for line, (refusal, harmful) in enumerate(zip(refusals, harmful_examples, strict=True), start=1)
        ]

    @property
    def method(self) -> RepnoiseSpec:
        return self._spec

    @property
    def longest_row(self) -> int:
        return max(map(len, self._harmful))

    def begin(self, training: Training) -> None:
        super().begin(training)
        if training.packing:
            raise InputError("repnoise compares padded rows; leave packing out.")
        assert len(training.examples) == len(self._harmful), "the refusals are the examples of the run"
        self._backbone = backbone_of(training.model)
        self._mlps = layer_parts(training.model, "mlp")
        if not hasattr(self._backbone.decoder, "norm"):
            raise ModelError(
                f"{type(self._backbone.decoder).__name__} has no final norm, which repnoise reads through."
            )

    def accumulate(self, step: int) -> StepFigures:
        training, alpha, beta = self.training, self._spec.alpha, self._spec.beta
        indices = training.order.at(step)
        harmful = [self._harmful[i] for i in indices]
        batches = list(training.cut(harmful))
        num_harmful = count_trained(harmful)
        with torch.no_grad(), rehearsal(training.device):
            seen = [self._harmful_pass(batch) for batch in batches]
        unlearned = 1 + torch.stack([loss for _, loss in seen]).sum() / num_harmful  # H
        counted = [is_counted(batch) for batch in batches]
        noise, pushes = self._noise([features for features, _ in seen], counted, step)
        for batch, push in zip(batches, pushes, strict=True):
            features, loss = self._harmful_pass(batch)
            pushed = torch.stack([(a * g).sum() for a, g in zip(features, push, strict=True)]).sum()
            torch.autograd.backward(beta * pushed - alpha / unlearned * loss / num_harmful)
        figures = accumulate_loss(training, training.examples_of(step))
        return figures._replace(penalty=beta * noise - alpha * unlearned.log())

    def identity(self) -> bytes:
        return identity_of(self._spec, self._harmful)

    def _harmful_pass(self, batch: Batch) -> tuple[list[Tensor], Tensor]:
        """The MLP outputs of every layer, (B, T-1, D) and zero where a token is not counted, and the cross
        entropy () of the counted tokens: their sum, the mean over states."""
        backbone = self._backbone
        with outputs_of(self._mlps) as outputs:
            decoded = backbone.decoder(
                input_ids=batch.input_ids[:, :-1], use_cache=False, output_hidden_states=True
            )
        counted = is_counted(batch)
        targets = batch.labels[:, 1:].flatten()  # (B * (T-1),)
        (places,) = torch.nonzero(targets != IGNORED, as_tuple=True)  # (N,)
        losses = []
        *states, last = decoded.hidden_states  # transformers gives the last one after the final norm
        for state in [*(backbone.decoder.norm(state.flatten(0, 1)[places]) for state in states), None]:
            hidden = last.flatten(0, 1)[places] if state is None else state  # (N, D)
            logits = backbone.logits(hidden)  # (N, V)
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            losses.append(functional.cross_entropy(logits, targets[places], reduction="sum"))
        features = [output.to(torch.promote_types(output.dtype, torch.float32)) for output in outputs]
        return [output * counted for output in features], torch.stack(losses).mean()

    def _noise(
        self, seen: Sequence[Sequence[Tensor]], counted: Sequence[Tensor], step: int
    ) -> tuple[Tensor, list[list[Tensor]]]:
        """N () and its gradient by the features of each micro-batch and layer. The noise of a row is the same
        in whichever micro-batch it is: they are cut from one order, that of length."""
        longest = max(features[0].shape[1] for features in seen)
        generator = torch.Generator(self.training.device).manual_seed(self.training.seed * 1_000_003 + step)
        mask = stacked(counted, longest)  # (rows, longest, 1)
        gradients: list[list[Tensor]] = [[] for _ in seen]
        values = []
        for layer in range(len(self._mlps)):
            parts = [features[layer] for features in seen]  # (B, T-1, D) each
            rows = stacked(parts, longest)  # (rows, longest, D)
            draws = torch.randn(rows.shape, generator=generator, device=rows.device) * mask
            with torch.enable_grad():
                leaf = rows.detach().requires_grad_()
                value = discrepancy(leaf.flatten(1), draws.to(rows.dtype).flatten(1)) / len(self._mlps)
                (gradient,) = torch.autograd.grad(value, leaf)  # (rows, longest, D)
            values.append(value.detach())
            start = 0
            for index, part in enumerate(parts):
                gradients[index].append(gradient[start : start + len(part), : part.shape[1]])
                start += len(part)
        return torch.stack(values).sum(), gradients


def is_counted(batch: Batch) -> Tensor:
    """(B, T-1, 1): whether the features of this token are looked at. Those of an answer's last token never
    are: in the longest row of a batch it is no input."""
    return ((batch.labels[:, :-1] != IGNORED) & (batch.attention_mask[:, 1:] == 1))[..., None]


def stacked(parts: Sequence[Tensor], length: int) -> Tensor:
    """(B, T, D) each -> (sum of B, length, D), zeros behind shorter rows."""
    return torch.cat([functional.pad(part, (0, 0, 0, length - part.shape[1])) for part in parts])


def differing(refusal: Example, harmful: Example, line: int) -> Example:
    """The harmful example with labels only where its token is not that of the refusal at the same place.
    Raises InputError, naming the line, if the prompts differ or nothing of the answers does."""
    prompts = []
    for example in (refusal, harmful):
        first = int(np.flatnonzero(example.labels != IGNORED)[0])
        prompts.append(example.input_ids[:first].tobytes())
    if prompts[0] != prompts[1]:
        raise InputError(
            f"repnoise needs pairs, but line {line} of the two files has different prompts (everything "
            "before the first answer that is trained)."
        )
    shared = min(len(refusal), len(harmful))
    same = np.zeros(len(harmful), dtype=bool)
    same[:shared] = refusal.input_ids[:shared] == harmful.input_ids[:shared]
    labels = np.where(same, np.int32(IGNORED), harmful.labels)
    if not (labels[1:] != IGNORED).any():
        raise InputError(f"repnoise: in line {line} the harmful answer is the same as the refusal.")
    return up_to_last_trained(Example(harmful.input_ids, labels))


def discrepancy(samples: Tensor, others: Tensor) -> Tensor:
    """Squared maximum mean discrepancy () of two sets (N, F), biased: five Gaussian kernels with widths
    1/4 to 4 times the mean squared distance of all pairs, which is taken as a constant."""
    together = torch.cat([samples, others])  # (2N, F)
    squares = together.square().sum(dim=1)
    distances = (squares[:, None] + squares[None] - 2 * together @ together.T).clamp_min(0)  # (2N, 2N)
    count = len(together)
    width = (distances.detach().sum() / (count * count - count)).clamp_min(1e-30)
    kernels = torch.stack(
        [torch.exp(-distances / (width * 2.0 ** (i - _NUM_KERNELS // 2))) for i in range(_NUM_KERNELS)]
    ).sum(dim=0)
    signs = torch.ones(count, device=together.device, dtype=together.dtype)
    signs[len(samples) :] = -1
    return (kernels * signs[:, None] * signs[None]).mean() * 4
