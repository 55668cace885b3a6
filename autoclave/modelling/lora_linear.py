"""Linear layers with LoRA, and the gated MLP made of three of them, each in one autograd step.

What autograd would keep and copy between the products of `lora_products` is most of what they leave to save.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from autoclave.modelling.lora_products import Layer, Products


def lora_linears(inputs: Tensor, layers: Sequence[Layer]) -> tuple[Tensor, ...]:
    """(..., in) -> of each layer (..., out). Computed in the type of the inputs; factors of another type are
    cast, and their gradients back."""
    products = Products(layers)
    rows = inputs.reshape(-1, inputs.shape[-1])  # (T, in)
    outputs: Sequence[Tensor]
    if torch.is_grad_enabled():
        outputs = _LoraLinears.apply(rows, products, *products.factors)  # type: ignore[no-untyped-call]
    else:
        outputs, _ = products.forward(rows, products.factors)
    return tuple(output.view(*inputs.shape[:-1], -1) for output in outputs)


def gated_mlp(inputs: Tensor, gate: Layer, up: Layer, down: Layer) -> Tensor:
    """(..., D) -> (..., D): down(silu(gate(x)) * up(x))."""
    first, second = Products((gate, up)), Products((down,))
    rows = inputs.reshape(-1, inputs.shape[-1])  # (T, D)
    factors = (*first.factors, *second.factors)
    if torch.is_grad_enabled():
        output = _GatedMlp.apply(rows, first, second, *factors)  # type: ignore[no-untyped-call]
    else:
        (gated, other), _ = first.forward(rows, first.factors)
        (output,), _ = second.forward(functional.silu(gated).mul_(other), second.factors)
    return output.view(*inputs.shape[:-1], -1)  # type: ignore[no-any-return]


class _LoraLinears(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, products: Products, *factors: Tensor) -> tuple[Tensor, ...]:
        outputs, inner = products.forward(rows, factors)
        ctx.save_for_backward(rows, *inner, *factors)
        ctx.products = products
        return tuple(outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *by_outputs: Tensor) -> tuple[Tensor | None, ...]:
        products: Products = ctx.products
        rows, *saved = ctx.saved_tensors
        inner, factors = saved[: products.num_inner], saved[products.num_inner :]
        by_rows, by_factors = products.backward(
            rows, inner, factors, by_outputs, with_rows=ctx.needs_input_grad[0]
        )
        return by_rows, None, *by_factors


class _GatedMlp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, first: Products, second: Products, *factors: Tensor) -> Tensor:
        count = len(first.factors)
        (gated, other), inner = first.forward(rows, factors[:count])  # (T, F) each
        product = functional.silu(gated).mul_(other)  # (T, F)
        (output,), last_inner = second.forward(product, factors[count:])
        ctx.save_for_backward(rows, gated, other, product, *inner, *last_inner, *factors)
        ctx.parts = first, second
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_output: Tensor) -> tuple[Tensor | None, ...]:
        first, second = ctx.parts
        rows, gated, other, product, *saved = ctx.saved_tensors
        num_inner, count = first.num_inner + second.num_inner, len(first.factors)
        inner, factors = saved[:num_inner], saved[num_inner:]
        by_product, by_last = second.backward(
            product, inner[first.num_inner :], factors[count:], (by_output,), with_rows=True
        )
        # In place: tensors of this size are read and written slower than they are computed.
        by_other = functional.silu(gated).mul_(by_product)  # (T, F)
        by_gated = by_product.mul_(other)
        torch.ops.aten.silu_backward.grad_input(by_gated, gated, grad_input=by_gated)
        by_rows, by_first = first.backward(
            rows,
            inner[: first.num_inner],
            factors[:count],
            (by_gated, by_other),
            with_rows=ctx.needs_input_grad[0],
        )
        return by_rows, None, None, *by_first, *by_last
