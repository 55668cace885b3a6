"""The last check: is the folder that leaves the adapter that was scored, and does plain PEFT load it?

Uses nothing of our own to load: what works here works for whoever downloads it.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM

from autoclave.modelling.bases import default_dtype
from autoclave.spec import LoraSpec

# Another process, perhaps on another machine of the same kind, adds in another order.
_TOLERANCE = {"float32": 1e-3, "bfloat16": 0.25}


class ExportGateError(AssertionError):
    """The packaged adapter is not what was scored: a bug or a broken disk, never the user's doing."""


@torch.inference_mode()
def last_logits(model: Any, prompts: Sequence[list[int]]) -> Tensor:
    """(num_prompts, vocabulary) float32 on the CPU: the logits after each prompt, one prompt at a time."""
    rows = [
        model(input_ids=torch.tensor([ids], device=model.device)).logits[0, -1].float().cpu()
        for ids in prompts
    ]
    return torch.stack(rows)


def check_export(
    folder: Path, *, base_dir: str, device: str, lora: LoraSpec, probes: Sequence[list[int]], scored: Tensor
) -> None:
    """Raises ExportGateError. `scored` are the `last_logits` of the model that was measured."""
    config = PeftConfig.from_pretrained(str(folder))
    if config.r != lora.r:
        raise ExportGateError(f"rank {config.r} is packaged, {lora.r} was trained")
    dtype = default_dtype(device)
    base = AutoModelForCausalLM.from_pretrained(
        base_dir,
        dtype=getattr(torch, dtype),
        local_files_only=True,
        use_safetensors=True,
        trust_remote_code=False,
    ).to(device)
    with warnings.catch_warnings():
        # PEFT uses an old name of transformers'; nothing that anybody here can act on.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        model = PeftModel.from_pretrained(base, str(folder)).eval()
    _check_factors(model)
    logits = last_logits(model, probes)
    if not torch.isfinite(logits).all():
        raise ExportGateError("the packaged adapter gives logits that are not finite")
    difference = (logits - scored).abs().max().item()
    allowed = _TOLERANCE[dtype] * max(1.0, scored.abs().max().item())
    if difference > allowed:
        raise ExportGateError(f"logits differ by {difference:.3g} from those that were scored")


@torch.no_grad()
def _check_factors(model: Any) -> None:
    """Every entry finite, and the update of at least one layer not zero."""
    factors = {name: p for name, p in model.named_parameters() if ".lora_" in name}
    for name, parameter in factors.items():
        if not torch.isfinite(parameter).all():
            raise ExportGateError(f"{name} has entries that are not finite")
    updates = (
        (factors[name.replace(".lora_A.", ".lora_B.")] @ a).abs().max().item()
        for name, a in factors.items()
        if ".lora_A." in name
    )
    if max(updates, default=0.0) == 0.0:
        raise ExportGateError("the adapter changes nothing: every update is zero")
