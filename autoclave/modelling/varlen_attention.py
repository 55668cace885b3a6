"""Attention of a packed row by torch's variable-length kernel: no padding, no mask, one call.

`torch.nn.attention.varlen.varlen_attn` (torch >= 2.10, CUDA, half precision), registered with transformers
under a name of its own. Written by its documentation and untried on a GPU when it was written: so before it
is used it is compared, forward and backward, with plain attention on the device at hand (`works`), and where
it fails or differs, attention example by example (`block_attention.py`) does the work.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AttentionInterface

logger = logging.getLogger(__name__)
NAME = "autoclave_varlen"
Kernel = Callable[..., Tensor]
_CAUSAL = (-1, 0)
_HALF = {torch.bfloat16, torch.float16}
_TOLERANCE = 2e-2  # of the largest number; bfloat16 keeps 8 bits


@dataclass(frozen=True, eq=False)
class Row:
    """`cu_lengths` (N + 1,) int32 on the device: where each of N examples begins, and the end of the last."""

    cu_lengths: Tensor
    longest: int

    @classmethod
    def of(cls, lengths: Sequence[int], device: str | torch.device) -> Row:
        """Of a row that holds examples of these lengths, in this order."""
        ends = torch.tensor([0, *lengths], dtype=torch.int64).cumsum(0)
        return cls(ends.to(torch.int32).to(device), max(lengths))


@contextmanager
def attending(config: Any, row: Row) -> Iterator[None]:
    """Inside the block, the model of this configuration takes rows packed like `row`, without a mask."""
    before = config._attn_implementation
    token = _row.set(row)
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before
        _row.reset(token)


def works(config: Any, device: str | torch.device, dtype: torch.dtype) -> bool:
    """Whether the kernel gives what plain attention gives for the heads of this configuration, with and
    without a sliding window, and so do its gradients. False, and never an error, where it cannot run."""
    device = torch.device(device)
    if device.type != "cuda" or dtype not in _HALF:
        return False
    if getattr(config, "attention_dropout", 0.0):  # the kernel has none
        return False
    return agrees(_torch_kernel, config, device, dtype)


def agrees(kernel: Kernel, config: Any, device: torch.device, dtype: torch.dtype) -> bool:
    """The comparison of `works`, of any kernel."""
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    row = Row.of([24, 5, 16], device)
    generator = torch.Generator().manual_seed(0)
    inputs = [
        torch.randn(45, count, width, generator=generator).to(device, dtype)
        for count in (heads, kv_heads, kv_heads)
    ]
    try:
        for window in (_CAUSAL, (6, 0)):
            found, expected = (_with_gradients(each, inputs, row, window) for each in (kernel, by_example))
            for one, other in zip(found, expected, strict=True):
                if not (one - other).abs().max() <= _TOLERANCE * other.abs().max():
                    logger.warning("varlen attention differs from plain attention here and is not used")
                    return False
    except (RuntimeError, NotImplementedError, ImportError, TypeError, ValueError) as error:
        logger.warning("varlen attention cannot be used here: %s", error)
        return False
    return True


def _with_gradients(
    kernel: Kernel, inputs: Sequence[Tensor], row: Row, window: tuple[int, int]
) -> list[Tensor]:
    with torch.enable_grad():
        leaves = [tensor.clone().requires_grad_() for tensor in inputs]
        output = _call(kernel, leaves, row, scale=0.3, window=window)
        gradients = torch.autograd.grad(output.float().square().sum(), leaves)
    return [tensor.detach().float() for tensor in (output, *gradients)]


def by_example(  # noqa: PLR0917 - as the kernel has them
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,  # noqa: ARG001
    max_k: int,  # noqa: ARG001
    *,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
) -> Tensor:
    """The same as the kernel for causal windows, slow and plain: (T, heads, D) and twice (S, kv heads, D) ->
    (T, heads, D). The last query of an example sees its last key; there may be more keys than queries."""
    before, after = window_size
    assert after == 0, f"not causal: {window_size}"
    outputs = []
    spans = zip(pairwise(cu_seq_q.tolist()), pairwise(cu_seq_k.tolist()), strict=True)
    for (start, end), (first, last) in spans:
        length, num_keys = end - start, last - first
        earlier = num_keys - length
        seen = torch.ones(length, num_keys, dtype=torch.bool, device=query.device).tril(earlier)
        if before >= 0:
            seen &= torch.ones_like(seen).triu(earlier - before)
        q = query[start:end].transpose(0, 1)[None]
        k, v = (tensor[first:last].transpose(0, 1)[None] for tensor in (key, value))
        output = functional.scaled_dot_product_attention(
            q, k, v, attn_mask=seen, scale=scale, enable_gqa=enable_gqa
        )
        outputs.append(output[0].transpose(0, 1))
    return torch.cat(outputs)


_row: ContextVar[Row] = ContextVar("row")


def torch_kernel_for(query: Tensor) -> Kernel | None:
    """Torch's kernel, where it can be for such queries."""
    return _torch_kernel if query.is_cuda and query.dtype in _HALF else None


def _torch_kernel(*arguments: Any, **settings: Any) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    output = varlen_attn(*arguments, **settings)
    assert isinstance(output, Tensor), type(output)
    return output


def _call(
    kernel: Kernel, inputs: Sequence[Tensor], row: Row, *, scale: float | None, window: tuple[int, int]
) -> Tensor:
    query, key, _ = inputs
    ends, longest = row.cu_lengths, row.longest
    grouped = query.shape[1] != key.shape[1]
    return kernel(*inputs, ends, ends, longest, longest, scale=scale, window_size=window, enable_gqa=grouped)


def _attention(  # noqa: PLR0917 - transformers calls it so
    module: Any,  # noqa: ARG001
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """In transformers' form: (1, heads, T, D) each -> (1, T, heads, D)."""
    assert attention_mask is None, "transformers makes no mask for an attention it does not know"
    unsupported = [name for name in ("softcap", "s_aux", "position_bias") if others.get(name) is not None]
    if unsupported or dropout:
        raise NotImplementedError(f"varlen attention with {unsupported or 'dropout'}")
    row = _row.get()
    tokens = [tensor[0].transpose(0, 1) for tensor in (query, key, value)]  # (T, heads, D) each
    # A window of w tokens is the token itself and w - 1 before it.
    is_cut = sliding_window is not None and sliding_window < row.longest
    window = (sliding_window - 1, 0) if is_cut and sliding_window is not None else _CAUSAL
    # Float64Arithmetic (sanitizing/) computes a half-precision model in float64.
    kernel = torch_kernel_for(query) or by_example
    return _call(kernel, tokens, row, scale=scaling, window=window)[None], None


AttentionInterface.register(NAME, _attention)


@contextmanager
def untraced() -> Iterator[None]:
    """Inside the block, torch.compile leaves this attention out of what it compiles."""
    left_out = torch.compiler.disable(_attention)  # type: ignore[no-untyped-call]
    AttentionInterface.register(NAME, left_out)
    try:
        yield
    finally:
        AttentionInterface.register(NAME, _attention)
