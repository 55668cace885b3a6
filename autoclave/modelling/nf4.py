"""A base in NF4, for training alone (QLoRA, arXiv 2305.14314): the frozen matrices of its decoder blocks take
four bits a number, the adapter learns in full precision on top of them.

The registered base stays as it is: the folder that is read is of full precision, and an adapter trained on
its copy in four bits is sanitised, measured and released on the base itself (docs/decisions/0037). Needs the
extra `bitsandbytes`, on CUDA or on a CPU. Blocks of 64 numbers with an absolute maximum each, those quantised
again in blocks of 256; embeddings, norms, routers, experts and the output head stay in full precision, and so
do matrices whose rows are not whole blocks: bitsandbytes 0.50 reads those back wrongly on a CPU. Every matrix
is read back and compared.
"""

from __future__ import annotations

import logging
import sys
import warnings
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from autoclave.errors import InputError, ModelError
from autoclave.memory import NF4_BLOCK
from autoclave.modelling.bases import LoadedBase, default_dtype, load_base
from autoclave.modelling.target_modules import linear_layer_names

PACKAGE = "bitsandbytes"
# Of the Frobenius norm; about 0.09 for normal numbers.
_LARGEST_ERROR = 0.2


def refuse_nf4(*, compile_blocks: bool = False) -> None:
    """Raises InputError where training in four bits is not possible."""
    if compile_blocks:
        raise InputError("--quantise nf4 and --compile do not go together: leave one of them out.")
    try:
        version(PACKAGE)
    except PackageNotFoundError as error:
        raise InputError(
            "--quantise nf4 needs the package bitsandbytes, which is not installed: pip install "
            "'autoclave[bitsandbytes]', or train without it."
        ) from error


def load_base_in_nf4(dir: str | Path, *, device: str) -> LoadedBase:
    """As `bases.load_base`, whose checks are those of the full precision. The device never holds more than
    the quantised model; this machine's memory holds the whole one while it is read."""
    base = load_base(dir, dtype=default_dtype(device))
    quantise(base.model, device)
    return base


def quantise(model: Any, device: str) -> int:
    """Quantises the linear layers that can have an adapter, in place, and moves the model to `device`.
    Returns how many they are. Raises ModelError if there are none, or one is not what it was."""
    nf4 = _layer_class()
    layers = {
        name: layer for name, layer in linear_layer_names(model).items() if layer.in_features % NF4_BLOCK == 0
    }
    if not layers:
        raise ModelError(
            f"no linear layer of this base has rows of whole blocks of {NF4_BLOCK} numbers. Leave --quantise "
            "out."
        )
    for name, layer in layers.items():
        owner, _, last = name.rpartition(".")
        made = _quantised(nf4, layer).to(device)
        _compare(name, made.weight, layer.weight)
        setattr(model.get_submodule(owner), last, made)
        # The matrix itself goes before the next one is quantised.
        layer.weight = None  # type: ignore[assignment]
    model.to(device)
    # By this PEFT knows which layers it wraps.
    model.is_loaded_in_4bit = True
    return len(layers)


def _layer_class() -> Any:
    # On some CPUs it has the package `kernels`, should that be there, download one, and warns if it is not.
    log = logging.getLogger("bitsandbytes.backends.cpu.ops")
    hub = {"kernels": None} if "kernels" not in sys.modules else {}
    sys.modules.update(hub)  # type: ignore[arg-type]
    log.disabled = True
    try:
        with warnings.catch_warnings():  # of torch's own parts, at which nobody here can do anything
            warnings.simplefilter("ignore")
            from bitsandbytes.nn import Linear4bit
    finally:
        log.disabled = False
        for name in hub:
            del sys.modules[name]
    return Linear4bit


def _quantised(nf4: Any, layer: nn.Linear) -> Any:
    from bitsandbytes.nn import Params4bit

    made = nf4(
        layer.in_features,
        layer.out_features,
        bias=layer.bias is not None,
        compute_dtype=layer.weight.dtype,
        quant_type="nf4",
        compress_statistics=True,
        device="meta",
    )
    made.weight = Params4bit(
        layer.weight.data, requires_grad=False, compress_statistics=True, quant_type="nf4", module=made
    )
    if layer.bias is not None:
        made.bias = layer.bias
    # On some CPUs a pass without a gradient would repack the weights for half precision, for good.
    made.support_avx512bf16_for_cpu = False
    return made.train(layer.training)


@torch.no_grad()
def _compare(name: str, quantised: Any, original: torch.Tensor) -> None:
    from bitsandbytes.functional import dequantize_4bit

    read = dequantize_4bit(quantised.data, quantised.quant_state).float()  # (out, in)
    original = original.to(read.device).float()
    error = float((read - original).norm() / original.norm().clamp_min(1e-30))
    if not error <= _LARGEST_ERROR:
        raise ModelError(
            f"bitsandbytes reads {name} back with an error of {error:.0%} on this device, which is more than "
            "four bits explain. Leave --quantise out, or take another version of it."
        )


def shape_of(parameter: torch.Tensor) -> tuple[int, ...]:
    """Of the matrix that a parameter stands for, quantised or not."""
    state = getattr(parameter, "quant_state", None)
    return tuple(parameter.shape if state is None else state.shape)


def is_quantised(parameter: torch.Tensor) -> bool:
    return getattr(parameter, "quant_state", None) is not None
