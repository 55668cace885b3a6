"""Running a model in float64 without touching its weights.

float32 kernels order their sums by the shape of the batch, so the last bits of an activation depend on
padding, batch size and packing. In float64 those differences are about 1e-15 and vanish when a statistic is
rounded to float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

_LOW = (torch.float32, torch.bfloat16, torch.float16)
_CASTS = (torch.Tensor.float, torch.Tensor.bfloat16, torch.Tensor.half)
_GROUPED = ("grouped_mm", "_grouped_mm")
_LOOKUPS = (functional.embedding, torch.embedding)


class Float64Arithmetic(TorchFunctionMode):
    """Inside the block every torch operation of this thread takes and gives float64 instead of a lower
    precision, and whoever asks for a lower one (norm layers and rotary embeddings ask for float32, PEFT
    for the type of lora_A) gets float64.

    No parameter changes, so there is nothing to put back: storage, types and ties stay. A weight is
    converted when an operation reads it and dropped after it: the cost is the largest matrix in float64 and
    the activations of one batch at twice their size, and one conversion per use, which a batch of
    some thousand tokens hides. Rows of an embedding are converted after they are looked up.
    Operations in place keep the type of what they write to.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in ("__get__", "__set__") or _in_place(name):
            return func(*args, **kwargs)
        if func in _LOOKUPS:
            return func(*args, **kwargs).double()
        if func in _CASTS:
            func = torch.Tensor.double
        elif name in _GROUPED:
            func = _grouped_mm
        return func(*(_raised(value) for value in args), **{key: _raised(v) for key, v in kwargs.items()})


def _grouped_mm(rows: Tensor, weights: Tensor, *, offs: Tensor, **others: Any) -> Tensor:
    """(N, in) sorted by expert, (E, in, out), where each expert's rows end (E,) -> (N, out). torch's own, of
    mixtures of experts, takes no float64."""
    unknown = [option for option, value in others.items() if option != "out_dtype" and value is not None]
    assert not unknown, unknown
    ends = offs.tolist()
    starts = [0, *ends[:-1]]
    parts = [rows[a:b] @ weight for a, b, weight in zip(starts, ends, weights, strict=True) if a < b]
    rest = rows.new_zeros(len(rows) - ends[-1], weights.shape[-1])  # rows of no expert
    return torch.cat([*parts, rest])


def _in_place(name: str) -> bool:
    return (name.endswith("_") and not name.endswith("__")) or name.startswith("__i") or name == "__setitem__"


def _raised(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.double() if value.dtype in _LOW else value
    if isinstance(value, torch.dtype):
        return torch.float64 if value in _LOW else value
    if type(value) in (list, tuple):
        return type(value)(_raised(item) for item in value)
    return value
