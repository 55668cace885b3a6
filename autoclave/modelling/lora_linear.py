"""A frozen linear layer with LoRA in one autograd step, and rows that go through different adapters.

Frozen layers need no gradient, and the sum of the two paths no copy: this computes W x + s B A x into one
tensor, and backward into one, with 1 + 2 and 1 + 4 matrix products per adapter and nothing else. PEFT's layer
has twice as many operations, which on small steps is most of the time.

Rows need not share an adapter: `segments` says which rows go through which (training/fused.py). One product
with W serves all of them; each adapter sees its own rows alone, so no job is in another's gradient.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from peft.tuners.lora.layer import Linear as PeftLinear
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional


class Factors(NamedTuple):
    """W + scale * B @ A. A (r, in), B (out, r)."""

    A: Tensor
    B: Tensor
    scale: float


class Segment(NamedTuple):
    """Rows `start` to `end` go through these factors."""

    start: int
    end: int
    factors: Factors


def lora_linear(inputs: Tensor, weight: Tensor, bias: Tensor | None, segments: Sequence[Segment]) -> Tensor:
    """(..., in) -> (..., out), for a `weight` (out, in) and `bias` (out,) that are not trained. Segments
    count rows of the flattened inputs and do not overlap; other rows have no adapter. Computed in the type
    of the inputs; factors of another type are cast, and their gradients back."""
    places = tuple((segment.start, segment.end, segment.factors.scale) for segment in segments)
    flat = [factor for segment in segments for factor in segment.factors[:2]]
    rows = inputs.reshape(-1, inputs.shape[-1])  # (T, in)
    if not torch.is_grad_enabled():
        return _products(rows, weight, bias, places, [f.to(rows.dtype) for f in flat])[0].view(
            *inputs.shape[:-1], -1
        )
    outputs: Tensor = _LoraLinear.apply(rows, weight, bias, places, *flat)  # type: ignore[no-untyped-call]
    return outputs.view(*inputs.shape[:-1], -1)


def _products(
    rows: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    places: Sequence[tuple[int, int, float]],
    factors: Sequence[Tensor],
) -> tuple[Tensor, list[Tensor]]:
    """(T, in) -> (T, out), and of each segment A x (n, r)."""
    outputs = functional.linear(rows, weight, bias)  # (T, out)
    inner = []
    for (start, end, scale), A, B in zip(places, factors[::2], factors[1::2], strict=True):
        inner.append(torch.mm(_part(rows, start, end), A.T))  # (n, r)
        _part(outputs, start, end).addmm_(inner[-1], B.T, alpha=scale)
    return outputs, inner


def _part(rows: Tensor, start: int, end: int) -> Tensor:
    """A whole is not sliced: that takes microseconds, five times a layer."""
    return rows if end - start == len(rows) else rows[start:end]


class _LoraLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        places: tuple[tuple[int, int, float], ...],
        *factors: Tensor,
    ) -> Tensor:
        outputs, inner = _products(rows, weight, bias, places, [f.to(rows.dtype) for f in factors])
        ctx.save_for_backward(rows, weight, *inner, *factors)
        ctx.places = places
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_outputs: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, *saved = ctx.saved_tensors
        count = len(ctx.places)
        inner, factors = saved[:count], saved[count:]
        by_rows = torch.mm(by_outputs, weight) if ctx.needs_input_grad[0] else None  # (T, in)
        by_factors: list[Tensor] = []
        for (start, end, scale), XA, A, B in zip(ctx.places, inner, factors[::2], factors[1::2], strict=True):
            by_own = _part(by_outputs, start, end)  # (n, out)
            by_inner = torch.mm(by_own, B.to(by_own.dtype)).mul_(scale)  # (n, r)
            by_factors.append(torch.mm(by_inner.T, _part(rows, start, end)).to(A.dtype))  # (r, in)
            by_factors.append(torch.mm(by_own.T, XA).mul_(scale).to(B.dtype))  # (out, r)
            if by_rows is not None:
                _part(by_rows, start, end).addmm_(by_inner, A.to(by_own.dtype))
        return by_rows, None, None, None, *by_factors


@contextmanager
def short_lora(peft_model: Any) -> Iterator[int]:
    """Inside the block, the adapted layers of a PEFT model are computed by `lora_linear` where that gives the
    same: plain LoRA without dropout on frozen linear layers. Others stay with PEFT. Yields how many are
    changed."""
    layers = [m for m in peft_model.modules() if _is_plain(m) and "forward" not in vars(m)]
    with ExitStack() as stack:
        for layer in layers:
            stack.enter_context(_forward_replaced(layer, _short_forward(layer)))
        yield len(layers)


@contextmanager
def _forward_replaced(module: nn.Module, forward: Any) -> Iterator[None]:
    assert "forward" not in vars(module), f"{type(module).__name__} has a forward of its own already"
    module.forward = forward
    try:
        yield
    finally:
        del module.forward


def _is_plain(module: Any) -> bool:
    if type(module) is not PeftLinear or len(module.active_adapters) != 1:
        return False
    (name,) = module.active_adapters
    base, layers = module.base_layer, [module.lora_A[name], module.lora_B[name]]
    return (
        type(base) is nn.Linear
        and not module.merged
        and name not in module.lora_variant
        and not getattr(module.lora_dropout[name], "p", 0.0)
        and not any(p.requires_grad for p in base.parameters())
        and all(type(layer) is nn.Linear and layer.bias is None for layer in layers)
        and not any(layer._forward_hooks or layer._forward_pre_hooks for layer in (base, *layers))
    )


def _short_forward(layer: Any) -> Any:
    (name,) = layer.active_adapters
    base, A, B, scale = layer.base_layer, layer.lora_A[name], layer.lora_B[name], layer.scaling[name]
    plain = layer.forward

    def forward(inputs: Tensor, *others: Any, **named: Any) -> Tensor:
        if layer.disable_adapters or layer.merged or others or named:
            outputs: Tensor = plain(inputs, *others, **named)
            return outputs
        num_rows = inputs.numel() // inputs.shape[-1]
        segment = Segment(0, num_rows, Factors(A.weight, B.weight, scale))
        return lora_linear(inputs, base.weight, base.bias, (segment,))

    return forward


class RowsByJob:
    """Adapters of several jobs on one base, of which each row goes through one.

    `adapters[j]` holds the factors of job j by the full name of the layer. Inside `installed`, the rows
    of a pass are those that `rows` says: `(job, start, end)` without a gap, once for all tokens of the pass
    and once for those that the last MLP may be left with (`last_mlp.py`); or with `only(job)` all of one.
    """

    def __init__(self, model: Any, adapters: Sequence[Mapping[str, Factors]]) -> None:
        self._adapters = adapters
        self._model = model
        self.rows: Sequence[Sequence[tuple[int, int, int]]] = ()
        self._only: int | None = None

    @contextmanager
    def installed(self) -> Iterator[None]:
        with ExitStack() as stack:
            for name in sorted({name for adapter in self._adapters for name in adapter}):
                layer = self._model.get_submodule(name)
                assert type(layer) is nn.Linear, (name, type(layer))
                stack.enter_context(_forward_replaced(layer, self._forward(name, layer)))
            yield

    @contextmanager
    def only(self, job: int) -> Iterator[None]:
        """All rows of the passes inside the block are of this job."""
        self._only = job
        try:
            yield
        finally:
            self._only = None

    def _rows(self, num_rows: int) -> Sequence[tuple[int, int, int]]:
        if self._only is not None:
            return ((self._only, 0, num_rows),)
        for rows in self.rows:
            if rows[-1][2] == num_rows:
                return rows
        raise AssertionError((num_rows, self.rows))

    def _forward(self, name: str, layer: Any) -> Any:
        def forward(inputs: Tensor) -> Tensor:
            num_rows = inputs.numel() // inputs.shape[-1]
            rows = self._rows(num_rows)
            segments = [
                Segment(start, end, self._adapters[job][name])
                for job, start, end in rows
                if name in self._adapters[job]
            ]
            return lora_linear(inputs, layer.weight, layer.bias, segments)

        return forward
