"""Rotary positions in one autograd step, on a CPU.

Transformers writes them as q * cos + rotate_half(q) * sin, which makes three tensors of the size of q and, in
the backward pass, four more. Here each half of a head is added in its place, and the gradient is turned back:

    y1 = x1 cos1 - x2 sin1,  y2 = x2 cos2 + x1 sin2

What is replaced is a function of transformers' module of the architecture, as Liger does it
(`liger_kernels.py`), for as long as the model is trained.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from autoclave.modelling.backbone import backbone_of

_NAME = "apply_rotary_pos_emb"
_TOLERANCE = 1e-5  # of the largest number; another rotation differs far more
_TYPES = (torch.float32, torch.float64)


@contextmanager
def short_rotary(model: Any) -> Iterator[bool]:
    """Inside the block, the architecture's rotary positions are computed so, where the function that does it
    is found to give the same; yields whether. Calls of another form go to that function."""
    module = sys.modules[type(backbone_of(model).decoder).__module__]
    plain = getattr(module, _NAME, None)
    if plain is None or not _gives_the_same(plain):
        yield False
        return

    def rotary(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *others: Any, **named: Any) -> Any:
        if others or named or not _is_ours(q, k, cos):
            return plain(q, k, cos, sin, *others, **named)
        return _rotated(q, cos, sin), _rotated(k, cos, sin)

    setattr(module, _NAME, rotary)
    try:
        yield True
    finally:
        setattr(module, _NAME, plain)


def _is_ours(q: Tensor, k: Tensor, cos: Tensor) -> bool:
    """q, k (B, heads, T, D) and cos (B, T, D), of one type, on a CPU."""
    return (
        q.ndim == k.ndim == 4
        and cos.ndim == 3
        and q.shape[-1] == cos.shape[-1]
        and not q.is_cuda
        and q.dtype == k.dtype == cos.dtype
        and q.dtype in _TYPES
    )


def _rotated(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    rotated: Tensor = _Rotary.apply(states, cos[:, None], sin[:, None])  # type: ignore[no-untyped-call]
    return rotated


class _Rotary(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        half = states.shape[-1] // 2
        first, second = states[..., :half], states[..., half:]
        rotated = states * cos
        rotated[..., :half].addcmul_(second, sin[..., :half], value=-1)
        rotated[..., half:].addcmul_(first, sin[..., half:])
        return rotated

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_rotated: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        half = by_rotated.shape[-1] // 2
        first, second = by_rotated[..., :half], by_rotated[..., half:]
        by_states = by_rotated * cos
        by_states[..., :half].addcmul_(second, sin[..., half:])
        by_states[..., half:].addcmul_(first, sin[..., :half], value=-1)
        return by_states, None, None


@torch.no_grad()
def _gives_the_same(plain: Any) -> bool:
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(1, 2, 3, 8, generator=generator), torch.randn(1, 1, 3, 8, generator=generator)
    cos, sin = torch.randn(2, 1, 3, 8, generator=generator)
    try:
        expected = plain(q, k, cos, sin)
    except (TypeError, ValueError, RuntimeError):  # another form of it
        return False
    found = _rotated(q, cos, sin), _rotated(k, cos, sin)
    return all(
        (a - b).abs().max() <= _TOLERANCE * a.abs().max() for a, b in zip(expected, found, strict=True)
    )
