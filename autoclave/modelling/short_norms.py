"""RMSNorm of a frozen weight in one autograd step, on a CPU.

Transformers writes it as six operations on the whole hidden state, each of which autograd answers with one or
two more; the weight is not trained, so only the gradient by the inputs is needed:

    y = w * r * x,  r = (mean(x^2) + eps)^(-1/2)
    dx = r * g - x * r^3 * (g . x) / D,  with g = w * dy
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_TOLERANCE = 1e-5  # of the largest number; another formula differs far more
_TYPES = (torch.float32, torch.float64)


@contextmanager
def short_norms(model: nn.Module) -> Iterator[int]:
    """Inside the block, those norms of the model that are found to be RMSNorms, by computing rows both ways,
    are computed so. Yields how many."""
    with ExitStack() as stack:
        count = 0
        for module in model.modules():
            eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
            if not isinstance(eps, float) or "forward" in vars(module):
                continue
            weight = _weight_of(module, eps)
            if weight is not None:
                module.forward = partial(_norm, weight=weight, eps=eps)
                stack.callback(delattr, module, "forward")
                count += 1
        yield count


def _norm(inputs: Tensor, weight: Tensor, eps: float) -> Tensor:
    """(..., D) -> (..., D)."""
    if torch.is_grad_enabled() and inputs.requires_grad:
        output: Tensor = _RmsNorm.apply(inputs, weight, eps)  # type: ignore[no-untyped-call]
        return output
    return (inputs * _reciprocals(inputs, eps)).mul_(weight)


def _reciprocals(inputs: Tensor, eps: float) -> Tensor:
    """(..., D) -> (..., 1)."""
    squares: Tensor = torch.linalg.vecdot(inputs, inputs)[..., None]  # (..., 1)
    return squares.div_(inputs.shape[-1]).add_(eps).rsqrt_()


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, eps: float) -> Tensor:
        reciprocals = _reciprocals(inputs, eps)
        ctx.save_for_backward(inputs, reciprocals)
        ctx.weight = weight
        return (inputs * reciprocals).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_outputs: Tensor) -> tuple[Tensor, None, None]:
        inputs, reciprocals = ctx.saved_tensors
        weighted = by_outputs * ctx.weight  # (..., D)
        slopes = torch.linalg.vecdot(weighted, inputs)[..., None]  # (..., 1)
        slopes.mul_(reciprocals**3).div_(-inputs.shape[-1])
        return weighted.mul_(reciprocals).addcmul_(inputs, slopes), None, None


@torch.no_grad()
def _weight_of(module: Any, eps: float) -> Tensor | None:
    """What the rows are multiplied by, None if the module is no RMSNorm or is trained."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or weight.ndim != 1 or weight.requires_grad:
        return None
    if weight.is_cuda or weight.dtype not in _TYPES or set(module.state_dict()) != {"weight"}:
        return None
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(3, len(weight), generator=generator).to(weight) * 3
    expected = module.forward(rows)  # not called: hooks would see what is no part of the run
    for factor in (weight, 1 + weight):  # Llama's, Gemma's
        difference = (_norm(rows, factor, eps) - expected).abs().max()
        if difference <= _TOLERANCE * expected.abs().max():
            return factor
    return None
