"""How much memory fine-tuning takes, from the shapes in the base's weight files. No torch, nothing loaded.

    base         4 bytes per parameter on a CPU (float32), 2 on a GPU (bfloat16)
                 in NF4 (QLoRA) 0.516 per parameter of the linear layers, and the largest of them once in full
    adapter      4 bytes per LoRA parameter: r * (in + out) per adapted layer
    optimizer    12 bytes per LoRA parameter: its gradient and AdamW's two moments, float32
    activations  per token of a forward pass: b * (L * (8 h + 3 i) + 3 m r) for what the L decoder layers and
                 m adapters keep for the backward pass; and 12 V for the logits of as many tokens as have
                 them at once (training/head_loss.py). With activation checkpointing the blocks keep their
                 inputs, and one of them everything: b * (L h + 8 h + 3 i + 3 m r / L)

    defence      what the method keeps beside that (0 for plain training), for P LoRA parameters, t tokens of
                 a forward pass and T of a whole step:
                 ldifs     4 P for the initial adapter; 12 L h t for the MLP outputs of both passes and their
                           differences
                 lisa      8 P for where the two states ended
                 booster   12 P for two gradients and the moved weights
                 vaccine   b L h (T + 3 t) for gradients by the attention outputs, and what is added to them
                 repnoise  8 L h (T + t) for MLP outputs and their gradients, 4 V (L + 1) t for the logits of
                           every hidden state, 16 h T for the noise

h is the hidden size, i the width of the MLP, V the vocabulary, b the bytes of the base's numbers. A forward
pass has at most min(micro_batch_tokens, batch_size * longest row) tokens, and never less than the longest
row. An upper bound: passes are usually cut smaller (packed rows come closest to it), and only trained tokens
have logits. What Python and its libraries take before anything is loaded is not in it.

On a CPU the activations count one and a half times: glibc's allocator keeps what is freed between layers.
Measured on the shipped base, 16 rows of 500 tokens: 504 MB, and 384 MB with MALLOC_MMAP_THRESHOLD_=65536,
which hands it back; the formula alone gives 424 MB (tests/autoclave/test_memory.py holds both to a factor of
1.5). An MLP that is not of the SwiGLU kind, and one whose LoRA has dropout, keeps i more per layer.
"""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any, Literal

import msgspec

from autoclave.errors import ModelError
from autoclave.modelling.block_names import ALL_LINEAR, ATTENTION, adaptable, is_attention, last_part
from autoclave.spec import (
    BoosterSpec,
    LdifsSpec,
    LisaSpec,
    LoraSpec,
    RepnoiseSpec,
    SftSpec,
    TrainingMethod,
    TrainSpec,
    VaccineSpec,
)

Device = Literal["cpu", "cuda"]
Shapes = dict[str, tuple[int, ...]]
_BYTES_PER_NUMBER: dict[Device, int] = {"cpu": 4, "cuda": 2}
_KEPT_BY_ALLOCATOR: dict[Device, float] = {"cpu": 1.5, "cuda": 1}
# How many the loss computes at once. On a CPU they should stay near its caches; a GPU wants large products.
LOGITS_AT_ONCE: dict[Device, int] = {"cpu": 2**23, "cuda": 2**27}
NF4_BLOCK = 64
# Four bits, a byte per block for its maximum, and 4 bytes per 256 of those.
_BYTES_OF_NF4 = 1 / 2 + 1 / NF4_BLOCK + 4 / (NF4_BLOCK * 256)
_MAX_HEADER_BYTES = 100_000_000
_PLAIN = SftSpec()


class MemoryEstimate(msgspec.Struct, frozen=True):
    """Bytes."""

    base: int
    adapter: int
    optimizer: int
    activations: int
    defence: int
    total: int


def weight_shapes(folder: Path) -> Shapes:
    """Names and shapes of all tensors, from the headers of the safetensors files. Raises ModelError."""
    return {name: tuple(entry["shape"]) for name, entry in weight_headers(folder).items()}


def weight_headers(folder: Path) -> dict[str, Any]:
    """Names of all tensors to `dtype` and `shape` as the safetensors files name them. Raises ModelError."""
    headers: dict[str, Any] = {}
    try:
        for path in sorted(folder.glob("*.safetensors")):
            with path.open("rb") as file:
                (num_bytes,) = struct.unpack("<Q", file.read(8))
                if num_bytes > _MAX_HEADER_BYTES:
                    raise ValueError(f"a header of {num_bytes} bytes")
                header = json.loads(file.read(num_bytes))
            header.pop("__metadata__", None)
            headers |= {
                name: {"dtype": str(entry["dtype"]), "shape": [int(size) for size in entry["shape"]]}
                for name, entry in header.items()
            }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise ModelError("the weight files of the base cannot be read.") from error
    if not headers:
        raise ModelError("the weight files of the base are not on this server.")
    return headers


def adapted_layers(shapes: Shapes, target_modules: tuple[str, ...] | str) -> dict[str, tuple[int, int]]:
    """Name of each linear layer that gets an adapter to (out, in). Raises ModelError if there is none."""
    matrices = {
        name.removesuffix(".weight"): (shape[0], shape[1])
        for name, shape in shapes.items()
        if name.endswith(".weight") and len(shape) == 2
    }
    layers = {
        module: matrices[module]
        for module in adaptable(matrices, shapes)
        if target_modules == ALL_LINEAR
        or (target_modules == ATTENTION and is_attention(module))
        or (not isinstance(target_modules, str) and last_part(module) in target_modules)
    }
    if not layers:
        raise ModelError("target_modules names no linear layer of this base.")
    return layers


def estimate_memory(
    shapes: Shapes,
    lora: LoraSpec,
    train: TrainSpec,
    *,
    longest_row: int,
    device: Device,
    method: TrainingMethod = _PLAIN,
    checkpointing: bool | None = None,
    quantised: bool = False,
) -> MemoryEstimate:
    """`longest_row` is in tokens, after the cut at `max_seq_length`. `checkpointing` says whether decoder
    blocks are computed again in the backward pass; None: only where the spec asks for it. `quantised`: the
    base is in NF4 (`modelling.nf4`). Raises ModelError.
    """
    width = _BYTES_PER_NUMBER[device]
    layers = adapted_layers(shapes, lora.target_modules)
    lora_parameters = sum(lora.r * (rows + columns) for rows, columns in layers.values())
    embedding = max(
        (s for n, s in shapes.items() if "embed" in n and len(s) == 2), default=None, key=math.prod
    )
    if embedding is None:
        raise ModelError("the weights of the base have no embedding.")
    vocabulary, hidden = embedding
    intermediate = max(max(s) for n, s in shapes.items() if len(s) == 2 and s != embedding)
    num_layers = len({part for name in shapes if (part := _layer_of(name)) is not None})
    tokens = max(longest_row, min(train.micro_batch_tokens, train.batch_size * longest_row))
    of_blocks = num_layers * (8 * hidden + 3 * intermediate) + 3 * len(layers) * lora.r
    if train.activation_checkpointing == "on" if checkpointing is None else checkpointing:
        of_blocks = num_layers * hidden + math.ceil(of_blocks / max(1, num_layers))
    per_token = width * of_blocks
    base = width * sum(math.prod(shape) for shape in shapes.values())
    if quantised:
        base -= _saved_by_nf4(shapes, width)
    adapter, optimizer = 4 * lora_parameters, 12 * lora_parameters
    logits = 12 * min(tokens * vocabulary, LOGITS_AT_ONCE[device])
    activations = math.ceil(_KEPT_BY_ALLOCATOR[device] * (tokens * per_token + logits))
    copies, kept = _extra(
        method,
        per_layer=num_layers * hidden,
        pass_tokens=tokens,
        step_tokens=train.batch_size * longest_row,
        vocabulary=vocabulary,
        num_layers=num_layers,
        hidden=hidden,
        width=width,
    )
    defence = copies * 4 * lora_parameters + math.ceil(_KEPT_BY_ALLOCATOR[device] * kept)
    total = base + adapter + optimizer + activations + defence
    return MemoryEstimate(base, adapter, optimizer, activations, defence, total)


def _extra(
    method: TrainingMethod,
    *,
    per_layer: int,
    pass_tokens: int,
    step_tokens: int,
    vocabulary: int,
    num_layers: int,
    hidden: int,
    width: int,
) -> tuple[int, int]:
    """What a method keeps: copies of the adapter, and bytes of activations. `per_layer` is L h."""
    match method:
        case LdifsSpec():
            return 1, 12 * per_layer * pass_tokens
        case LisaSpec():
            return 2, 0
        case BoosterSpec():
            return 3, 0
        case VaccineSpec():
            return 0, width * per_layer * (step_tokens + 3 * pass_tokens)
        case RepnoiseSpec():
            logits = 4 * vocabulary * (num_layers + 1) * pass_tokens
            return 0, 8 * per_layer * (step_tokens + pass_tokens) + logits + 16 * hidden * step_tokens
        case SftSpec():
            return 0, 0


def _saved_by_nf4(shapes: Shapes, width: int) -> int:
    """Bytes. One matrix, the largest, is there in full while it is used."""
    layers = adapted_layers(shapes, ALL_LINEAR).values()
    numbers = [rows * columns for rows, columns in layers if columns % NF4_BLOCK == 0]
    if not numbers:
        return 0
    return round((width - _BYTES_OF_NF4) * sum(numbers)) - width * max(numbers)


def _layer_of(name: str) -> int | None:
    return next((int(part) for part in name.split(".") if part.isdecimal()), None)
