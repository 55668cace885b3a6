"""Which layers of a loaded model get an adapter: chosen by what they are and where they stand.

A layer can have one if it is a torch.nn.Linear inside a decoder block and neither router nor expert
(`block_names`). Names only choose among those.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from autoclave.errors import ModelError
from autoclave.modelling.block_names import ALL_LINEAR, ATTENTION, adaptable, is_attention, last_part


def linear_layer_names(model: Any) -> dict[str, nn.Linear]:
    """Full name to layer of every linear layer that can have an adapter, in the model's order."""
    linear: dict[str, nn.Linear] = {}
    others: list[str] = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            linear[name] = module
        else:
            others.append(name)
    return {name: linear[name] for name in adaptable(linear, others)}


def resolve_target_modules(model: Any, wanted: tuple[str, ...] | str) -> list[str]:
    """Sorted last parts of module names; "all-linear" and "attention" written out.

    Raises ModelError, saying why and what there is, for a base with no such layers, for a name that matches
    no linear layer, and for one that some other layer shares (PEFT would adapt both).
    """
    available = linear_layer_names(model)
    shared = _shared_names(model, available)
    names = sorted({last_part(name) for name in available} - set(shared))
    if not names:
        kinds = sorted({type(m).__name__ for _, m in model.named_modules() if _holds_a_matrix(m)})
        raise ModelError(
            f"{type(_bare(model)).__name__} is not supported: no torch.nn.Linear stands in its decoder "
            f"blocks, only {', '.join(kinds) or 'nothing'}."
        )
    if wanted == ALL_LINEAR:
        return names
    if wanted == ATTENTION:
        attention = sorted({last_part(n) for n in available if is_attention(n)} & set(names))
        if not attention:
            raise ModelError(
                f'this base has no attention with linear layers of its own, so "attention" means nothing. '
                f"Choose from {names}."
            )
        return attention
    missing = sorted(set(wanted) - set(names))
    if missing or not wanted:
        raise ModelError(
            f"target modules {missing} are not linear layers of this base"
            f"{_why_not(model, missing, shared)}. "
            f'Available: {names}, or "all-linear", or "attention".'
        )
    return sorted(set(wanted))


def _why_not(model: Any, missing: list[str], shared: dict[str, str]) -> str:
    for name in missing:
        if name in shared:
            return f" alone ({shared[name]} has that name too and is never adapted)"
        for full, _ in model.named_parameters():
            if "experts" in full.split(".") and name in full.split("."):
                return (
                    f" ({name} belongs to the experts, which are not adapted: one tensor holds them all, "
                    "or each sees part of the tokens only)"
                )
    return ""


def _shared_names(model: Any, available: dict[str, nn.Linear]) -> dict[str, str]:
    """Last parts of adaptable names that a module which cannot be adapted has too, to its full name."""
    wanted = {last_part(name) for name in available}
    return {
        last_part(name): name
        for name, module in model.named_modules()
        if last_part(name) in wanted and name not in available and _holds_a_matrix(module)
    }


def _holds_a_matrix(module: Any) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, nn.Parameter) and weight.dim() == 2


def _bare(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model
