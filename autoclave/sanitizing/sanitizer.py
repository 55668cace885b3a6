"""What every sanitiser is: something that edits the factors of one adapter, at a strength, and undoes it.

A subclass says what the factors become (`edit`); this class owns their originals, so that a search may
try strengths in any order. Nothing is measured here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from autoclave.sanitizing.activations import factor_layers
from autoclave.sanitizing.strengths import Strength
from autoclave.spec import SanitizerName


@dataclass(frozen=True, eq=False)
class Edit:
    """New values of the factors that change, and where a mask made them zero; both by the names of
    `factor_layers`. `masks` are bool, True where pruned, of the shape of the factor."""

    weights: dict[str, Tensor]
    masks: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class MatrixChange:
    """What a strength does to one matrix. `pruned` entries are zero because of a mask, `already_zero` of
    them were before it. `original_norm` is the Frobenius norm of the original, `relative_change` that of the
    change over it."""

    rows: int
    cols: int
    pruned: int
    already_zero: int
    original_norm: float
    relative_change: float


class Sanitizer(ABC):
    """`apply` changes the adapter in place, always starting from the weights it had when this object was
    made; `restore` brings those back, bit for bit. `last_applied` and `masks_of_last_apply` say what `apply`
    did last, also after `restore`; the masks are empty where nothing is pruned."""

    method: ClassVar[SanitizerName]

    def __init__(self, peft_model: Any) -> None:
        self.layers: dict[str, nn.Linear] = factor_layers(peft_model)
        self.originals = {name: layer.weight.detach().clone() for name, layer in self.layers.items()}
        self.last_applied: Strength | None = None
        self.masks_of_last_apply: dict[str, Tensor] = {}

    @abstractmethod
    def edit(self, strength: Strength) -> Edit:
        """What the factors become. May change the adapter's weights while it works; the caller sets them."""

    @torch.no_grad()
    def apply(self, strength: Strength) -> dict[str, MatrixChange]:
        """Sanitises the adapter at this strength. Returns what changed in every matrix, changed or not."""
        self.restore()
        edit = self.edit(strength)
        for name, layer in self.layers.items():
            layer.weight.copy_(edit.weights.get(name, self.originals[name]))
        self.last_applied, self.masks_of_last_apply = strength, edit.masks
        return {name: self._change(name, edit) for name in self.layers}

    @torch.no_grad()
    def restore(self) -> None:
        for name, layer in self.layers.items():
            layer.weight.copy_(self.originals[name])

    @contextmanager
    def applied(self, strength: Strength) -> Iterator[dict[str, MatrixChange]]:
        """The adapter is sanitised inside the block and whole after it."""
        try:
            yield self.apply(strength)
        finally:
            self.restore()

    def _change(self, name: str, edit: Edit) -> MatrixChange:
        original, mask = self.originals[name], edit.masks.get(name)
        rows, cols = original.shape
        change = torch.linalg.vector_norm(self.layers[name].weight - original)
        size = torch.linalg.vector_norm(original)
        return MatrixChange(
            rows=rows,
            cols=cols,
            pruned=int(mask.sum()) if mask is not None else 0,
            already_zero=int((mask & (original == 0)).sum()) if mask is not None else 0,
            original_norm=size.item(),
            relative_change=(change / size).item() if size > 0 else 0.0,
        )
