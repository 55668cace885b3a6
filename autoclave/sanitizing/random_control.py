"""The controls of Antidote: as many entries pruned, but chosen by chance, or by the size of weights alone.

If chance lowers the harmful score as much, the scores did not matter; if size alone does, the harmful
examples did not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from autoclave.sanitizing.activations import factor_layers
from autoclave.sanitizing.masks import select
from autoclave.spec import MaskRule


@contextmanager
def randomly_pruned(
    peft_model: Any,
    alpha: float,
    *,
    seed: int,
    rule: MaskRule = "row",
    rewound_to: Mapping[str, Tensor] | None = None,
) -> Iterator[None]:
    """The adapter is pruned inside the block and whole after it. The masks depend on the seed alone. With
    `rewound_to` entries take these values instead of zero (`rewind`)."""
    generator = torch.Generator().manual_seed(seed)
    scores = {
        name: torch.rand(layer.weight.shape, generator=generator)  # (out, in)
        for name, layer in factor_layers(peft_model).items()
    }
    with _pruned(peft_model, select(scores, alpha, rule), rewound_to):
        yield


@contextmanager
def by_magnitude(peft_model: Any, alpha: float, *, rule: MaskRule = "row") -> Iterator[None]:
    """The adapter lacks its largest weights inside the block and is whole after it."""
    scores = {name: layer.weight.detach().abs() for name, layer in factor_layers(peft_model).items()}
    with _pruned(peft_model, select(scores, alpha, rule)):
        yield


@contextmanager
def _pruned(
    peft_model: Any, masks: dict[str, Tensor], rewound_to: Mapping[str, Tensor] | None = None
) -> Iterator[None]:
    layers = factor_layers(peft_model)
    originals = {name: layer.weight.detach().clone() for name, layer in layers.items()}
    try:
        with torch.no_grad():
            for name, layer in layers.items():
                mask = masks[name].to(layer.weight.device)
                if rewound_to is None:
                    layer.weight.masked_fill_(mask, 0)
                else:
                    layer.weight.copy_(torch.where(mask, rewound_to[name], layer.weight))
        yield
    finally:
        with torch.no_grad():
            for name, layer in layers.items():
                layer.weight.copy_(originals[name])
