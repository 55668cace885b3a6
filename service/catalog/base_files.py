"""What the files of a base say about it, where this server has them; nothing is loaded."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

from autoclave.errors import ModelError
from autoclave.memory import adapted_layers, weight_shapes
from autoclave.modelling.architectures import refusal


def max_position_embeddings(folder: Path, sha256: str) -> int | None:
    """The most tokens the base was built for; None if its configuration is not here or does not say."""
    try:
        return _max_position_embeddings(folder, sha256)
    except (OSError, ValueError):
        return None


def linear_modules(folder: Path, sha256: str) -> tuple[str, ...]:
    """The last parts of the names of its linear layers, sorted: what `lora.target_modules` may name. Raises
    ModelError, in words that a tenant may read."""
    return _linear_modules(folder, sha256)


def unsupported(folder: Path, sha256: str) -> str | None:
    """Why no job can start from it, in words that a tenant may read; None if its configuration is not here
    or says nothing against it."""
    try:
        return _unsupported(folder, sha256)
    except (OSError, ValueError):
        return None


# Another hash, another base. What raises is not remembered: the files may still come.
@lru_cache(maxsize=64)
def _max_position_embeddings(folder: Path, sha256: str) -> int | None:  # noqa: ARG001
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if not isinstance(config, dict):
        raise ValueError("config.json holds no object")
    value = config.get("max_position_embeddings")
    return value if type(value) is int and value > 0 else None


@lru_cache(maxsize=64)
def _unsupported(folder: Path, sha256: str) -> str | None:  # noqa: ARG001
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if not isinstance(config, dict):
        raise ValueError("config.json holds no object")
    return refusal(config)


@lru_cache(maxsize=64)
def _linear_modules(folder: Path, sha256: str) -> tuple[str, ...]:  # noqa: ARG001
    if not folder.is_dir():
        raise ModelError("the weight files of the base are not on this server.")
    layers = adapted_layers(weight_shapes(folder), "all-linear")
    return tuple(sorted({name.rpartition(".")[2] for name in layers}))
