"""Which linear layers of a decoder can have an adapter, from the places of their names alone. No torch.

A name is a path: `model.layers.3.self_attn.q_proj`. The first number on it is that of the decoder block;
what lies outside of blocks (embeddings, projections around them, the output head) is not adapted. In a
mixture of experts, what has a brother called `experts` decides which of them run: a router. Experts
themselves see some tokens only, or are one tensor for all (docs/bases.md). Works on the names in weight files
and on those of modules, so that the API, which cannot load a base, says what the worker will find.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

ALL_LINEAR = "all-linear"
ATTENTION = "attention"
_EXPERTS = "experts"


def adaptable(names: Iterable[str], others: Iterable[str] = ()) -> tuple[str, ...]:
    """Those of `names` (of linear layers, in order) that can have an adapter. `others` are names beside
    them, of modules or tensors that are no linear layers, among which experts may be."""
    paths = {name: name.split(".") for name in names}
    with_experts = {
        tuple(path[: path.index(_EXPERTS)])
        for path in (*paths.values(), *(name.split(".") for name in others))
        if _EXPERTS in path
    }
    return tuple(name for name, path in paths.items() if _is_adaptable(path, with_experts))


def is_attention(name: str) -> bool:
    """Whether the layer belongs to the attention of its block: a part of the path between the number of
    the block and the last says so (`self_attn`, `attention`, `self_attention`)."""
    path = name.split(".")
    return any("attn" in part or "attention" in part for part in path[_block(path) + 1 : -1])


def last_part(name: str) -> str:
    return name.rpartition(".")[2]


def _is_adaptable(path: Sequence[str], with_experts: set[tuple[str, ...]]) -> bool:
    return _block(path) >= 0 and _EXPERTS not in path and tuple(path[:-1]) not in with_experts


def _block(path: Sequence[str]) -> int:
    """Where the number of the decoder block stands; -1 outside of blocks. The last part is the layer."""
    return next((place for place, part in enumerate(path[:-1]) if part.isdecimal()), -1)
