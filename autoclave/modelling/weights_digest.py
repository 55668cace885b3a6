"""What a model with an adapter computes at this moment, in a digest: names apart what only looks the same.

For everything that is kept under what it follows from, while an adapter is masked, restored and switched off.
"""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer

from autoclave.modelling.adapters import adapter_state


def worn_digest(peft_model: Any) -> str:
    """SHA-256 of the adapter's tensors, their names and types, and of each layer whether it is on, merged,
    and how it is scaled. Not of the base, whose weights nothing here changes. Reads the whole adapter."""
    digest = hashlib.sha256()
    for name, layer in sorted(peft_model.named_modules()):
        if isinstance(layer, BaseTunerLayer):
            scaling = sorted(getattr(layer, "scaling", {}).items())
            merged = getattr(layer, "merged", False)
            state = (name, layer.disable_adapters, list(layer.active_adapters), merged, scaling)
            digest.update(repr(state).encode())
    for name, tensor in sorted(adapter_state(peft_model).items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        flat = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
        digest.update(flat.numpy().tobytes())
    return digest.hexdigest()
