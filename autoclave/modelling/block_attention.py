"""Attention of a packed row, example by example: no score between two examples is ever computed.

A mask over the whole row would cost the square of the row's length, and padded batches of examples up to four
times what their scores cost. Everything else of the model sees the packed row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface

NAME = "autoclave_blocks"
_KNOWN_LAYERS = {"full_attention", "sliding_attention"}


def can_attend(config: Any) -> bool:
    """Whether the masks of this architecture are causal, with or without a sliding window, and no other."""
    layers = set(getattr(config, "layer_types", None) or ())
    return layers <= _KNOWN_LAYERS and not getattr(config, "attention_chunk_size", None)


@contextmanager
def attending(config: Any, lengths: Sequence[int]) -> Iterator[None]:
    """Inside the block, the model of this configuration takes rows of examples of these lengths, one after
    the other, without a mask."""
    before = config._attn_implementation
    token = _lengths.set(list(lengths))
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before
        _lengths.reset(token)


_lengths: ContextVar[list[int]] = ContextVar("lengths")


def _attention(  # noqa: PLR0917 - transformers calls it so
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """In transformers' form: (1, heads, T, D) each -> (1, T, heads, D)."""
    assert attention_mask is None, "transformers makes no mask for an attention it does not know"
    unsupported = [name for name in ("softcap", "s_aux", "position_bias") if others.get(name) is not None]
    if unsupported:
        raise NotImplementedError(f"attention with {unsupported}")
    sdpa = AttentionInterface()["sdpa"]
    rows = (torch.split(tensor, _lengths.get(), dim=2) for tensor in (query, key, value))
    outputs = []
    for parts in zip(*rows, strict=True):  # (1, heads, T_e, D) each
        mask = _window(sliding_window, parts[0])
        output, _ = sdpa(module, *parts, mask, **others)  # (1, T_e, heads, D)
        outputs.append(output)
    return torch.cat(outputs, dim=1), None


def _window(sliding_window: int | None, query: Tensor) -> Tensor | None:
    """(1, 1, T_e, T_e): which tokens each one sees; None if the window is wider than the example."""
    length = query.shape[2]
    if sliding_window is None or sliding_window >= length:
        return None
    ones = torch.ones(length, length, dtype=torch.bool, device=query.device)
    return (ones.tril() & ones.triu(1 - sliding_window))[None, None]


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
