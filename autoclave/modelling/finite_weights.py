"""Refusing weights that are NaN or infinite: they load without a word and spread to every result."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from autoclave.errors import NonFiniteWeightsError


@torch.no_grad()
def first_non_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """Name of the first floating-point tensor with an entry that is NaN or infinite, None if there is none.

    Reads every entry once and makes no tensor of that size: NaN passes through minimum and maximum,
    and an infinity is one of the two. One wait for the device in all.
    """
    checked = {name: t for name, t in tensors.items() if t.is_floating_point() and t.numel()}
    if not checked:
        return None
    extremes = [torch.stack(t.float().aminmax() if t.itemsize < 2 else t.aminmax()) for t in checked.values()]
    finite = torch.stack([pair.isfinite().all() for pair in extremes]).tolist()
    return next((name for name, good in zip(checked, finite, strict=True) if not good), None)


def refuse_non_finite(tensors: Mapping[str, Tensor], source: Path) -> None:
    """Raises NonFiniteWeightsError naming the tensor and `source`, the file or folder it is from."""
    name = first_non_finite(tensors)
    if name is not None:
        raise NonFiniteWeightsError(
            f"{source}: {name} has entries that are NaN or infinite. The training diverged or the file is "
            "damaged: train again with a lower learning rate, or fetch the file again."
        )
