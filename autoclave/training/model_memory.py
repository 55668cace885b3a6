"""The memory estimate of a model that is loaded, from its own shapes instead of its weight files."""

from __future__ import annotations

from typing import Any

import torch

from autoclave.errors import ModelError
from autoclave.memory import Device, MemoryEstimate, Shapes, estimate_memory
from autoclave.modelling.nf4 import is_quantised, shape_of
from autoclave.spec import LoraSpec, TrainingMethod, TrainSpec

_GIGABYTE = 1e9


def estimate_of_model(
    model: Any,
    train: TrainSpec,
    method: TrainingMethod,
    *,
    longest_row: int,
    device: torch.device,
    checkpointing: bool | None = None,
) -> MemoryEstimate | None:
    """`memory.estimate_memory` of a base that wears a LoRA; None for any other model."""
    shapes: Shapes = {}
    ranks: list[int] = []
    targets: set[str] = set()
    quantised = False
    for name, parameter in model.named_parameters():
        if ".lora_A." in name:
            ranks.append(len(parameter))
            targets.add(name.partition(".lora_A.")[0].rpartition(".")[2])
        elif ".lora_" not in name:
            shapes[name.replace(".base_layer.", ".")] = shape_of(parameter)
            quantised |= is_quantised(parameter)
    if not ranks:
        return None
    # Rank and modules alone decide what an adapter needs.
    lora = LoraSpec(r=max(ranks), target_modules=tuple(sorted(targets)))
    kind: Device = "cuda" if device.type == "cuda" else "cpu"
    try:
        return estimate_memory(
            shapes,
            lora,
            train,
            longest_row=longest_row,
            device=kind,
            method=method,
            checkpointing=checkpointing,
            quantised=quantised,
        )
    except ModelError:  # an architecture that the formula does not know
        return None


def in_words(estimate: MemoryEstimate) -> str:
    parts = {
        "base": estimate.base,
        "adapter": estimate.adapter,
        "optimiser": estimate.optimizer,
        "activations": estimate.activations,
        "defence": estimate.defence,
    }
    shown = ", ".join(f"{name} {_gigabytes(value)}" for name, value in parts.items() if value)
    return f"By estimate training needs {_gigabytes(estimate.total)} GB ({shown})."


def _gigabytes(num_bytes: int) -> str:
    return f"{num_bytes / _GIGABYTE:.3g}"
