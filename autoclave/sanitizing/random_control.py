"""The control of Antidote: as many entries pruned in every row, but chosen by chance.

If this lowers the harmful score as much, the scores did not matter.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from autoclave.sanitizing.activations import factor_layers
from autoclave.sanitizing.masks import row_mask


@contextmanager
@torch.no_grad()
def randomly_pruned(peft_model: Any, alpha: float, *, seed: int) -> Iterator[None]:
    """The adapter is pruned inside the block and whole after it. The masks depend on the seed alone."""
    generator = torch.Generator().manual_seed(seed)
    layers = factor_layers(peft_model)
    originals = {name: layer.weight.detach().clone() for name, layer in layers.items()}
    try:
        for layer in layers.values():
            scores = torch.rand(layer.weight.shape, generator=generator)  # (out, in)
            layer.weight.masked_fill_(row_mask(scores, alpha).to(layer.weight.device), 0)
        yield
    finally:
        for name, layer in layers.items():
            layer.weight.copy_(originals[name])
