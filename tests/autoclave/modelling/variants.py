"""Adapters that compute exactly plain LoRA, as plain PEFT makes them, for tests of several modules."""

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer

from autoclave.modelling.adapters import adapter_state
from autoclave.modelling.bases import load_base

PLAIN: dict[str, Any] = {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj", "down_proj"]}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": PLAIN,
    "rslora": PLAIN | {"use_rslora": True},
    "ranks": PLAIN | {"rank_pattern": {"v_proj": 2, r"layers\.1\.mlp\.down_proj": 7}},
    "alphas": PLAIN | {"alpha_pattern": {"q_proj": 1.5, "layers.0.mlp.down_proj": 40}},
    "rslora with both": PLAIN
    | {"use_rslora": True, "rank_pattern": {"v_proj": 9}, "alpha_pattern": {"v_proj": 3, "q_proj": 11}},
    # Where two patterns match, the first counts; sorting the keys would exchange them.
    "patterns that overlap": PLAIN
    | {
        "rank_pattern": {"v_proj": 2, r"layers\.0\.self_attn\.v_proj": 5},
        "alpha_pattern": {"v_proj": 24, r"layers\.0\.self_attn\.v_proj": 1},
    },
    "some layers": PLAIN | {"layers_to_transform": [1], "layers_pattern": "layers"},
    "exclusions": PLAIN | {"exclude_modules": ["layers.0.self_attn.q_proj"]},
    "expression": PLAIN | {"target_modules": r".*layers\.1\..*(k|up)_proj"},
    "all linear": PLAIN | {"target_modules": "all-linear"},
    "zero scale of one layer": PLAIN | {"alpha_pattern": {"q_proj": 0}},
    "gaussian, float alpha, dropout": PLAIN
    | {"init_lora_weights": "gaussian", "lora_alpha": 6.5, "lora_dropout": 0.5},
}


def fill(model: Any, seed: int = 3) -> None:
    """A trained-looking adapter: B starts at zero, which would hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in adapter_state(model).values():
        tensor.copy_(torch.randn(tensor.shape, generator=generator))


def change_config(folder: Path, **changes: Any) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def save_with_peft(base_dir: Path, folder: Path, options: dict[str, Any]) -> Path:
    """Plain PEFT writes the folder; then `options` as written here, because PEFT sorts the patterns."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(load_base(base_dir).model, LoraConfig(**options, task_type="CAUSAL_LM"))
    fill(model)
    model.save_pretrained(str(folder))
    change_config(folder, **options)
    return folder


def load_with_peft(base_dir: Path, folder: Path) -> Any:
    with warnings.catch_warnings():  # PEFT uses an old transformers name and says so
        warnings.simplefilter("ignore")
        return PeftModel.from_pretrained(load_base(base_dir).model, str(folder)).eval()


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        output: torch.Tensor = model(input_ids=torch.arange(24).reshape(2, 12)).logits  # (2, 12, 262)
    return output


def scales(model: Any) -> dict[str, float]:
    return {n: m.scaling["default"] for n, m in model.named_modules() if isinstance(m, LoraLayer)}
