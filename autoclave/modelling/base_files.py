"""What the files of a base say, and what in them is refused, before anything is loaded. No torch.

A model folder can ask for more than weights: code of its own (`auto_map`), kernels that are downloaded and
run (an `attn_implementation` that names a repository), or another folder (an `adapter_config.json` beside the
weights, which transformers follows). None of that is ever done here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoclave.errors import ModelError
from autoclave.hashing import BASE_PATTERNS
from autoclave.memory import weight_headers
from autoclave.modelling.architectures import refuse_architecture

CONFIG_FILES = ("config.json", "generation_config.json", "tokenizer_config.json")
INDEX_FILE = "model.safetensors.index.json"
NEVER_LOADED = (
    "*.bin",
    "*.pt",
    "*.pth",
    "*.ckpt",
    "*.pkl",
    "*.pickle",
    "*.h5",
    "*.msgpack",
    "*.gguf",
    "*.py",
)

_CODE_KEYS = frozenset({"auto_map", "custom_pipelines", "custom_generate"})
_IMPLEMENTATION_KEYS = ("attn_implementation", "experts_implementation")
_OWN_IMPLEMENTATIONS = (None, True, False, "eager", "sdpa", "grouped_mm", "batched_mm")
_WEIGHT_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True)
class BaseFiles:
    """`dtype` is that of most entries, as stored. `num_bytes` is of all files that belong to the base.
    `ignored` are names of files that are never loaded (pickles, code)."""

    architecture: str
    model_type: str
    num_parameters: int
    dtype: str
    num_bytes: int
    ignored: tuple[str, ...]


def read_base_files(folder: Path) -> BaseFiles:
    """Raises ModelError, saying which file and what to do, for a folder that is no base or asks for what is
    refused."""
    refuse_unusable(folder)
    config = _read_object(folder / "config.json")
    refuse_architecture(config, str(folder))
    architectures = config.get("architectures")
    if not isinstance(architectures, list) or not architectures:
        raise ModelError(f"{folder / 'config.json'} names no architecture; save the model with transformers.")
    _refuse_lost_shards(folder)
    sizes: dict[str, int] = {}
    for entry in weight_headers(folder).values():
        sizes[entry["dtype"]] = sizes.get(entry["dtype"], 0) + math.prod(entry["shape"])
    stored = max(sizes, key=lambda dtype: sizes[dtype])
    if stored not in _WEIGHT_DTYPES:
        raise ModelError(
            f"{folder} stores its weights as {stored}; known are {', '.join(_WEIGHT_DTYPES)}. "
            "Use the model as it was before it was quantised."
        )
    return BaseFiles(
        architecture=str(architectures[0]),
        model_type=str(config.get("model_type", "")),
        num_parameters=sum(sizes.values()),
        dtype=_WEIGHT_DTYPES[stored],
        num_bytes=sum(file.stat().st_size for file in base_files(folder)),
        ignored=tuple(sorted({file.name for pattern in NEVER_LOADED for file in folder.glob(pattern)})),
    )


def base_files(folder: Path) -> list[Path]:
    """Those that `hashing.folder_sha256` counts, sorted by name."""
    return sorted({file for pattern in BASE_PATTERNS for file in folder.glob(pattern) if file.is_file()})


def refuse_unusable(folder: Path) -> None:
    """Raises ModelError for a folder without configuration or safetensors weights, for an adapter, and for
    configuration that asks for code from elsewhere."""
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder} is not a model folder: it has no config.json.")
    if not any(folder.glob("*.safetensors")):
        raise ModelError(
            f"{folder} has no *.safetensors weights. Pickled weights (.bin, .pt) are never loaded: "
            "convert them with save_pretrained."
        )
    if (folder / "adapter_config.json").is_file():
        raise ModelError(
            f"{folder} has an adapter_config.json beside its weights, and transformers would follow it to "
            "another model. Merge the adapter into its base, or delete the file."
        )
    for name in CONFIG_FILES:
        file = folder / name
        if file.is_file():
            for key, value in forbidden_settings(_read_object(file)):
                raise ModelError(_refusal(file, key, value))


def read_config(folder: Path) -> dict[str, Any]:
    """`config.json` as it is. Raises ModelError if it is no JSON object."""
    return _read_object(folder / "config.json")


def forbidden_settings(settings: Any) -> Iterator[tuple[str, Any]]:
    """Keys and values, also of nested objects, that ask for code from elsewhere."""
    if not isinstance(settings, dict):
        return
    for key, value in settings.items():
        if key in _CODE_KEYS:
            if value:
                yield key, value
        elif any(name in key for name in _IMPLEMENTATION_KEYS):
            values = list(value.values()) if isinstance(value, dict) else [value]
            if not all(_is_own_implementation(each) for each in values):
                yield key, value
        else:
            for nested in value if isinstance(value, list) else [value]:
                yield from forbidden_settings(nested)


def without_forbidden_settings(settings: Any) -> Any:
    """A copy without what `forbidden_settings` finds."""
    if isinstance(settings, list):
        return [without_forbidden_settings(each) for each in settings]
    if not isinstance(settings, dict):
        return settings
    return {
        key: without_forbidden_settings(value)
        for key, value in settings.items()
        if all(found != key for found, _ in forbidden_settings({key: value}))
    }


def _is_own_implementation(value: Any) -> bool:
    return any(value is own or value == own for own in _OWN_IMPLEMENTATIONS if not isinstance(value, list))


def _refusal(file: Path, key: str, value: Any) -> str:
    if key in _CODE_KEYS:
        return (
            f'{file} asks for code from the folder ("{key}"), which is never run. '
            "Use a model that transformers supports itself. If it does, `autoclave base add --store DIR` "
            "makes a copy without that key."
        )
    return (
        f'{file}: "{key}" is {json.dumps(value)}, which may name code to download, and is never followed. '
        "Delete the key, or use `autoclave base add --store DIR`, which leaves it out of its copy."
    )


def _read_object(file: Path) -> dict[str, Any]:
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{file} is not valid JSON: {error}") from error
    if not isinstance(settings, dict):
        raise ModelError(f"{file} holds no JSON object.")
    return settings


def _refuse_lost_shards(folder: Path) -> None:
    """A download that was cut off has the index and some of the files."""
    file = folder / INDEX_FILE
    if not file.is_file():
        return
    shards = _read_object(file).get("weight_map")
    if not isinstance(shards, dict):
        raise ModelError(f"{file} has no weight_map.")
    for name in sorted({str(shard) for shard in shards.values()}):
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise ModelError(f"{file} names {name!r}, which is no safetensors file in the folder.")
        if not (folder / name).is_file():
            raise ModelError(f"{folder} is incomplete: {INDEX_FILE} names {name}, which is not there.")
