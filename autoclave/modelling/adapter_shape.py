"""What stays the same while an adapter is pruned: rank, patterns, scale and the layers it is on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from peft import LoraConfig
from safetensors import SafetensorError, safe_open

from autoclave.errors import ModelError
from autoclave.modelling.adapters import WEIGHTS_FILE, adapter_state, read_config

_PREFIX = "base_model.model."  # what PEFT puts before the names of the base in its files


@dataclass(frozen=True)
class AdapterShape:
    """`target_modules` are the full names of the adapted layers in the base, sorted: the short names or the
    expression in a configuration can mean other layers elsewhere. The patterns are (expression, value) in
    the order in which PEFT tries them."""

    r: int
    rank_pattern: tuple[tuple[str, int], ...]
    alpha_pattern: tuple[tuple[str, float], ...]
    lora_alpha: float
    use_rslora: bool
    target_modules: tuple[str, ...]


def adapter_shape(peft_model: Any) -> AdapterShape:
    """The shape of the adapter on a model."""
    return _shape(peft_model.peft_config["default"], set(adapter_state(peft_model)))


def stored_shape(folder: Path) -> AdapterShape:
    """The shape of the adapter in a PEFT folder, without loading its weights. Raises ModelError and its
    subclasses for a folder that `load_adapter` would refuse by its configuration."""
    config = read_config(folder)
    try:
        with safe_open(folder / WEIGHTS_FILE, framework="pt") as file:
            names = set(file.keys())
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{folder / WEIGHTS_FILE} cannot be read: {error}") from error
    return _shape(config, names)


def factor_name(module: str, factor: Literal["A", "B"]) -> str:
    """Name in a PEFT file of one factor on the layer with the full name `module`."""
    return f"{_PREFIX}{module}.lora_{factor}.weight"


def _shape(config: LoraConfig, names: set[str]) -> AdapterShape:
    end = factor_name("", "A").removeprefix(_PREFIX)
    modules = (name.removeprefix(_PREFIX).removesuffix(end) for name in names if name.endswith(end))
    return AdapterShape(
        r=config.r,
        rank_pattern=tuple(config.rank_pattern.items()),
        alpha_pattern=tuple(config.alpha_pattern.items()),
        lora_alpha=config.lora_alpha,
        use_rslora=bool(config.use_rslora),
        target_modules=tuple(sorted(modules)),
    )
