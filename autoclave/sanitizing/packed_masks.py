"""Files of masks (a bit per entry) and norms, so that anyone can check what was pruned and why."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from autoclave.errors import InputError
from autoclave.sanitizing.activations import ActivationNorm

_MASKS = "autoclave.masks"
_NORMS = "autoclave.norms"


def save_masks(masks: dict[str, Tensor], file: str | Path) -> None:
    """bool (rows, cols) by name -> uint8 (ceil(rows * cols / 8),) by name: row-major, the first entry in the
    lowest bit. Shapes and the order of the names stand in the metadata."""
    for name, mask in masks.items():
        assert mask.dtype == torch.bool, (name, mask.dtype)
    packed = {
        name: torch.from_numpy(np.packbits(mask.cpu().numpy(), axis=None, bitorder="little"))
        for name, mask in masks.items()
    }
    shapes = {name: list(mask.shape) for name, mask in masks.items()}
    save_file(packed, file, metadata={_MASKS: json.dumps(shapes)})


def load_masks(file: str | Path) -> dict[str, Tensor]:
    """What `save_masks` wrote, on the CPU. Raises InputError for any other file."""
    tensors, shapes = _read(file, _MASKS, "masks")
    masks = {}
    for name, shape in shapes.items():
        if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
            raise _broken(file, "masks", f"{name} has the shape {shape}")
        bits, entries = tensors[name], math.prod(shape)
        if bits.dtype != torch.uint8 or bits.shape != (-(-entries // 8),):
            raise _broken(file, "masks", f"{name} is {bits.dtype} {tuple(bits.shape)}, not bits of {shape}")
        flat = np.unpackbits(bits.numpy(), bitorder="little")
        if flat[entries:].any():
            raise _broken(file, "masks", f"{name} has bits beyond its last entry")
        masks[name] = torch.from_numpy(flat[:entries].astype(bool)).reshape(shape)
    return masks


def save_norms(norms: dict[str, ActivationNorm], file: str | Path) -> None:
    """float32 (in,) by name; the numbers of samples and tokens and the order stand in the metadata."""
    counts = {name: [norm.num_samples, norm.num_tokens] for name, norm in norms.items()}
    tensors = {name: norm.norm.clone() for name, norm in norms.items()}  # no two may share memory
    save_file(tensors, file, metadata={_NORMS: json.dumps(counts)})


def load_norms(file: str | Path) -> dict[str, ActivationNorm]:
    """What `save_norms` wrote. Raises InputError for any other file."""
    tensors, counts = _read(file, _NORMS, "activation norms")
    norms = {}
    for name, count in counts.items():
        tensor = tensors[name]
        if not (isinstance(count, list) and len(count) == 2 and all(type(n) is int and n > 0 for n in count)):
            raise _broken(file, "activation norms", f"{name} counts {count}")
        if tensor.dtype != torch.float32 or tensor.dim() != 1 or not (tensor >= 0).all():
            raise _broken(file, "activation norms", f"{name} is no vector of float32 norms")
        norms[name] = ActivationNorm(tensor, *count)
    return norms


def _read(file: str | Path, key: str, what: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(str(file), framework="pt") as opened:
            metadata = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  no iterator
    except (OSError, SafetensorError) as error:
        raise _broken(file, what, str(error)) from error
    try:
        entries = json.loads(metadata.get(key, "null"))
    except ValueError as error:
        raise _broken(file, what, f'its metadata "{key}" is not JSON') from error
    if not isinstance(entries, dict) or entries.keys() != tensors.keys():
        raise _broken(file, what, f'its metadata "{key}" does not list its tensors')
    return tensors, entries


def _broken(file: str | Path, what: str, why: str) -> InputError:
    return InputError(f"{file} is not a file of {what}: {why}. Write it again with Autoclave.")
