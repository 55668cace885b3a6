"""Decoder blocks compiled by torch.compile, one by one.

One compiled block serves all layers of a shape, so that starting is faster than with the whole model.
Attention of packed rows, which depends on the lengths in a row, runs as it is between compiled parts.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from autoclave.errors import InputError
from autoclave.modelling import block_attention, varlen_attention
from autoclave.modelling.layer_parts import decoder_layers


def refuse_compiling_on(device: str | torch.device) -> None:
    """Raises InputError for a device on which compiling is not offered."""
    if torch.device(device).type != "cuda":
        raise InputError(
            "--compile is for CUDA: on a CPU compiling takes longer than it saves. Leave it out."
        )


@contextmanager
def compiled_blocks(model: Any, backend: str) -> Iterator[int]:
    """Inside the block, every decoder layer runs compiled, for rows of any length. Yields how many there are.
    Raises ModelError for an architecture without a list of layers."""
    layers = decoder_layers(model)
    with ExitStack() as stack:
        for attention in (block_attention, varlen_attention):
            stack.enter_context(attention.untraced())
        for layer in layers:
            assert "forward" not in vars(layer), f"{type(layer).__name__} has a forward of its own already"
            layer.forward = torch.compile(layer.forward, backend=backend, dynamic=True)
            stack.callback(delattr, layer, "forward")
        yield len(layers)
