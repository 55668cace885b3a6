"""Vaccine: alignment that holds under the worst small perturbation of the hidden embeddings.

Source: arXiv 2402.01109 and git-disl/Vaccine, trainer.py:53-181. With g_m the gradient of the step's loss
by the output of the attention module of layer m (B, T, D), over the whole step,

    e_m = rho * g_m / ( sqrt( sum over m of ||g_m||^2 ) + 1e-7 )

and the step minimises the loss with e_m added to those outputs as a constant: two forward and two backward
passes. Default rho 2, theirs (Booster's copy of it has 5).

Their code deviates, and is not followed: it clears all gradients between the passes, so that gradient
accumulation loses micro-batches, and normalises each micro-batch by itself (here the norm is that of the
step: micro-batches change nothing); its two passes draw different dropout (here the same); padding has a
gradient of zero in both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from autoclave.data.tokens import Batch
from autoclave.defences.passes import rehearsal
from autoclave.modelling.layer_parts import changed_outputs, layer_parts
from autoclave.spec import VaccineSpec
from autoclave.training.objective import Objective, StepFigures, Training, count_trained, identity_of


class Vaccine(Objective):
    """`loss` is the perturbed one. Memory: the attention outputs of all layers and of the whole step, once;
    a smaller batch needs less, smaller micro-batches do not."""

    def __init__(self, spec: VaccineSpec) -> None:
        self._spec = spec

    @property
    def method(self) -> VaccineSpec:
        return self._spec

    def begin(self, training: Training) -> None:
        super().begin(training)
        self._attentions = layer_parts(training.model, "self_attn")

    def accumulate(self, step: int) -> StepFigures:
        training = self.training
        examples = training.examples_of(step)
        num_trained = count_trained(examples)
        batches = list(training.cut(examples))
        with rehearsal(training.device):
            gradients = [self._output_gradients(batch, num_trained) for batch in batches]
        scale = self._spec.rho / (global_norm([g for per_layer in gradients for g in per_layer]) + 1e-7)
        total, num_right = torch.zeros((2,), device=training.device)
        for batch, per_layer in zip(batches, gradients, strict=True):
            perturbations = [gradient * scale.to(gradient.dtype) for gradient in per_layer]
            # Until the backward pass is over: it may compute the blocks again.
            with changed_outputs(self._attentions, _adding(perturbations)):
                loss, _, right = training.token_loss(training.model, batch)
                torch.autograd.backward(loss / num_trained)
            total += loss.detach()
            num_right += right
        return StepFigures(total / num_trained, num_right / num_trained, num_trained, sum(map(len, examples)))

    def identity(self) -> bytes:
        return identity_of(self._spec)

    def _output_gradients(self, batch: Batch, num_trained: int) -> list[Tensor]:
        """By the output of each attention module, (B, T-1, D) per layer."""
        added: dict[int, Tensor] = {}

        def add_zero(layer: int, output: Tensor) -> Tensor:
            if layer not in added:  # else the backward pass computes the block again
                added[layer] = torch.zeros_like(output).requires_grad_()
            return output + added[layer]

        with changed_outputs(self._attentions, add_zero):
            loss, _, _ = self.training.token_loss(self.training.model, batch)
            layers = [added[layer] for layer in range(len(self._attentions))]
            return list(torch.autograd.grad(loss / num_trained, layers))


def _adding(perturbations: Sequence[Tensor]) -> Callable[[int, Tensor], Tensor]:
    def add(layer: int, output: Tensor) -> Tensor:
        return output + perturbations[layer]

    return add


def global_norm(tensors: Sequence[Tensor]) -> Tensor:
    """() over all entries of all tensors, in float32 or the tensors' float64."""
    dtype = torch.promote_types(tensors[0].dtype, torch.float32)
    return torch.stack([tensor.to(dtype).square().sum() for tensor in tensors]).sum().sqrt()
