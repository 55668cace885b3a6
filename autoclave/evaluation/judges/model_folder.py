"""Loading a model that judges: a local transformers folder, safetensors only, no code from the folder.

What is wrong with it is a JudgeError, because a ModelError is about the base that is judged.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoTokenizer

from autoclave.errors import JudgeError, ModelError
from autoclave.modelling.base_files import refuse_unusable
from autoclave.modelling.bases import default_dtype
from autoclave.modelling.finite_weights import refuse_non_finite


def read_model_config(folder: Path, *, head: str) -> dict[str, Any]:
    """`config.json` of a folder whose architecture ends in `head` ("ForCausalLM"). Raises JudgeError for a
    missing folder, pickled weights alone, code in the folder or another architecture."""
    if not folder.is_dir():
        raise JudgeError(f"the judge's folder {folder} is not there.")
    try:
        refuse_unusable(folder)
    except ModelError as error:
        raise JudgeError(f"the judge cannot be used: {error}") from error
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    architectures = config.get("architectures") or [] if isinstance(config, dict) else []
    if not any(str(name).endswith(head) for name in architectures):
        raise JudgeError(
            f"{folder} is no model for this kind of judge: its architecture is "
            f"{', '.join(map(str, architectures)) or 'not named'}, and one that ends in {head} is needed."
        )
    assert isinstance(config, dict)
    if config.get("is_encoder_decoder"):
        raise JudgeError(f"{folder} is an encoder-decoder model, and judges are decoders or encoders alone.")
    return config


def load_model_folder(folder: Path, auto_class: Any, *, device: str) -> tuple[Any, Any]:
    """(model in eval mode on `device`, tokenizer). Raises JudgeError for whatever does not load, a head whose
    size is not that of the config, missing tensors and entries that are NaN or infinite."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        model, report = auto_class.from_pretrained(
            folder,
            dtype=getattr(torch, default_dtype(device)),
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise JudgeError(f"the judge {folder} cannot be loaded: {error}") from error
    if report["mismatched_keys"] or report["missing_keys"]:  # transformers would go on with random values
        wrong = sorted(str(key) for key in (*report["mismatched_keys"], *report["missing_keys"]))
        raise JudgeError(
            f"the judge {folder} lacks {len(wrong)} tensors of its architecture, or they have another size, "
            f"e.g. {wrong[0]}."
        )
    model.requires_grad_(False)
    model.to(device).eval()
    try:
        refuse_non_finite(dict(model.named_parameters()), folder)
    except ModelError as error:
        raise JudgeError(f"the judge cannot be used: {error}") from error
    return model, tokenizer


def context_length(config: Any, tokenizer: Any) -> int:
    """Most tokens that the model can read at once."""
    limits = (getattr(config, "max_position_embeddings", None), tokenizer.model_max_length)
    return min((int(limit) for limit in limits if limit), default=1 << 30)
