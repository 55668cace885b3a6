"""Loading a base: a local transformers folder with safetensors weights and a tokenizer.

Never the network, never pickled weights, never code from the folder. No adapters here.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer

from autoclave.errors import InputError, ModelError
from autoclave.hashing import folder_sha256
from autoclave.modelling.architectures import refuse_architecture
from autoclave.modelling.base_files import read_config, refuse_unusable
from autoclave.modelling.finite_weights import refuse_non_finite

logger = logging.getLogger(__name__)

Dtype = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class LoadedBase:
    """`model` is a transformers causal language model in eval mode, `tokenizer` has a pad token."""

    model: Any
    tokenizer: Any
    dir: Path

    @cached_property
    def sha256(self) -> str:
        """Digest of the files that decide how the base behaves (`hashing.BASE_PATTERNS`)."""
        return folder_sha256(self.dir)


def default_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def resolve_device(wanted: str | None) -> str:
    """`wanted`, or the default: CUDA where there is one. Raises InputError for a name
    that is no device or a device that is not there."""
    if wanted is None:
        return default_device()
    kind, _, index = wanted.partition(":")
    if kind not in ("cpu", "cuda") or not (index == "" or index.isdecimal()):
        raise InputError(f'unknown device "{wanted}"; use cpu, cuda or cuda:N.')
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise InputError(
            f"device {wanted} is not there; this machine has {torch.cuda.device_count()} CUDA devices."
        )
    return wanted


def default_dtype(device: str) -> Dtype:
    """bfloat16 on CUDA, float32 elsewhere (adapter weights are float32 everywhere)."""
    return "bfloat16" if device.startswith("cuda") else "float32"


def load_base(dir: str | Path, *, dtype: Dtype = "float32", device: str = "cpu") -> LoadedBase:
    """Raises ModelError, saying what is missing, for a folder that is no such base, and NonFiniteWeightsError
    for one with a NaN or infinite entry.

    A tokenizer without a pad token pads with its end-of-sequence token (logged): padding is masked
    everywhere, so no result depends on which token it is.
    """
    return placed(read_base(dir, dtype=dtype), device)


def read_base(dir: str | Path, *, dtype: Dtype = "float32") -> LoadedBase:
    """The first half of `load_base`: in host memory, its numbers not looked at. Raises ModelError."""
    folder = Path(dir)
    refuse_unusable(folder)
    refuse_architecture(read_config(folder), str(folder))
    tokenizer = load_tokenizer(folder)
    try:
        model, report = _load_model(folder, dtype)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"{folder} cannot be loaded as a causal language model: {error}") from error
    if report["missing_keys"]:  # transformers would go on with random values
        missing = sorted(report["missing_keys"])
        raise ModelError(f"{folder} lacks {len(missing)} tensors of its architecture, e.g. {missing[0]}.")
    if model.config.is_encoder_decoder:
        raise ModelError(f"{folder} is an encoder-decoder model; only decoder-only models are supported.")
    model.requires_grad_(False)
    return LoadedBase(model, tokenizer, folder)


def placed(base: LoadedBase, device: str) -> LoadedBase:
    """The other half: the same base, moved to `device` and checked. Raises NonFiniteWeightsError."""
    base.model.to(device).eval()
    refuse_non_finite(dict(base.model.named_parameters()), base.dir)
    return base


def load_tokenizer(dir: str | Path) -> Any:
    """That of a base, without its model; it has a pad token. Raises ModelError."""
    folder = Path(dir)
    refuse_unusable(folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ModelError(f"{folder} has no tokenizer that can be loaded: {error}") from error
    if tokenizer.eos_token_id is None:
        raise ModelError(f"{folder}: the tokenizer has no end-of-sequence token; set eos_token.")
    if tokenizer.pad_token_id is None:
        logger.warning("%s: no pad token; padding with the end-of-sequence token", folder)
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _load_model(folder: Path, dtype: Dtype) -> tuple[Any, dict[str, Any]]:
    """With the sdpa kernels, or where transformers has none for the architecture (Gemma 2 caps its
    scores), with its plain attention."""
    for attention in ("sdpa", "eager"):
        try:
            loaded: tuple[Any, dict[str, Any]] = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=getattr(torch, dtype),
                attn_implementation=attention,
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
        except ValueError as error:
            if attention == "eager" or "scaled_dot_product_attention" not in str(error):
                raise
            continue
        return loaded
    raise AssertionError("eager attention is always there")
