"""Attention of a packed row, example by example: no score between two examples is ever computed.

A mask over the whole row would cost the square of the row's length. Here queries, keys and values are
put into padded batches of examples of similar length, for the attention alone; everything else of
the model sees the packed row, which has no padding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface

NAME = "autoclave_blocks"
_KNOWN_LAYERS = {"full_attention", "sliding_attention"}


@dataclass(frozen=True, eq=False)
class Blocks:
    """`batches` hold positions in the row, each (B, T_b) with a row per example; padding repeats an example's
    first token. `places` (T,) says where each token of the row stands in the batches, one after the other."""

    batches: tuple[Tensor, ...]
    places: Tensor

    @classmethod
    def of(cls, lengths: Sequence[int], device: str | torch.device) -> Blocks:
        """Of a row that holds examples of these lengths, in this order. Examples share a batch while none is
        shorter than half the longest: at most half the work on queries is padding."""
        starts = [0]
        for length in lengths:
            starts.append(starts[-1] + length)
        groups: list[list[int]] = []
        for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
            if groups and 2 * lengths[index] > lengths[groups[-1][0]]:
                groups[-1].append(index)
            else:
                groups.append([index])
        batches: list[Tensor] = []
        places = torch.empty(starts[-1], dtype=torch.int64)
        before = 0
        for group in groups:
            longest = lengths[group[0]]
            steps = torch.arange(longest)  # (T_b,)
            first = torch.tensor([starts[index] for index in group])[:, None]  # (B, 1)
            own = torch.tensor([lengths[index] for index in group])[:, None]  # (B, 1)
            is_token = steps < own  # (B, T_b)
            batch = first + steps * is_token
            places[batch[is_token]] = before + torch.nonzero(is_token.flatten())[:, 0]
            before += batch.numel()
            batches.append(batch.to(device))
        return cls(tuple(batches), places.to(device))


def can_attend(config: Any) -> bool:
    """Whether the masks of this architecture are causal, with or without a sliding window, and no other."""
    layers = set(getattr(config, "layer_types", None) or ())
    return layers <= _KNOWN_LAYERS and not getattr(config, "attention_chunk_size", None)


@contextmanager
def attending(config: Any, blocks: Blocks) -> Iterator[None]:
    """Inside the block, the model of this configuration takes rows packed like `blocks`, without a mask."""
    before = config._attn_implementation
    token = _blocks.set(blocks)
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before
        _blocks.reset(token)


_blocks: ContextVar[Blocks] = ContextVar("blocks")


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
    blocks = _blocks.get()
    sdpa = AttentionInterface()["sdpa"]
    tokens = [tensor[0].transpose(0, 1) for tensor in (query, key, value)]  # (T, heads, D) each
    outputs = []
    for batch in blocks.batches:
        parts = [tensor[batch].transpose(1, 2) for tensor in tokens]  # (B, heads, T_b, D) each
        length = batch.shape[1]
        mask = None
        if sliding_window is not None and sliding_window < length:
            ones = torch.ones(length, length, dtype=torch.bool, device=batch.device)
            mask = (ones.tril() & ones.triu(1 - sliding_window))[None, None]  # (1, 1, T_b, T_b)
        output, _ = sdpa(module, *parts, mask, **others)  # (B, T_b, heads, D)
        outputs.append(output.flatten(0, 1))
    return torch.cat(outputs)[blocks.places][None], None


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
