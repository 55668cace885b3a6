"""The shape of a model and of the folder it was saved to are the same, for every variant of LoRA."""

from pathlib import Path

import pytest
import torch
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file

from autoclave.errors import ModelError, UnsupportedAdapterError
from autoclave.modelling.adapter_shape import AdapterShape, adapter_shape, factor_name, stored_shape
from autoclave.modelling.adapters import load_adapter
from autoclave.modelling.bases import load_base
from tests.autoclave.modelling.variants import PLAIN, VARIANTS, change_config, save_with_peft


@pytest.mark.parametrize("variant", VARIANTS)
def test_folder_and_model_have_the_same_shape(base_dir: Path, tmp_path: Path, variant: str) -> None:
    folder = save_with_peft(base_dir, tmp_path / "a", VARIANTS[variant])
    base = load_base(base_dir)
    model = load_adapter(base, folder)
    layers = {n for n, m in model.get_base_model().named_modules() if isinstance(m, LoraLayer)}
    assert stored_shape(folder) == adapter_shape(model)
    assert set(stored_shape(folder).target_modules) == layers


def test_the_shape_is_what_was_asked_for(base_dir: Path, tmp_path: Path) -> None:
    options = VARIANTS["rslora with both"] | {"target_modules": ["v_proj", "q_proj"]}
    folder = save_with_peft(base_dir, tmp_path / "a", options)
    layers = [f"model.layers.{layer}.self_attn.{name}" for layer in (0, 1) for name in ("q_proj", "v_proj")]
    assert stored_shape(folder) == AdapterShape(
        r=4,
        rank_pattern=(("v_proj", 9),),
        alpha_pattern=(("v_proj", 3), ("q_proj", 11)),
        lora_alpha=6,
        use_rslora=True,
        target_modules=tuple(layers),
    )


def test_factor_names_are_those_in_the_file(base_dir: Path, tmp_path: Path) -> None:
    folder = save_with_peft(base_dir, tmp_path / "a", PLAIN)
    weights = load_file(folder / "adapter_model.safetensors")
    modules = stored_shape(folder).target_modules
    assert {factor_name(m, "A") for m in modules} | {factor_name(m, "B") for m in modules} == weights.keys()
    b = weights[factor_name("model.layers.0.mlp.down_proj", "B")]
    assert b.shape == torch.Size([32, 4])


def test_a_folder_that_is_no_plain_adapter(base_dir: Path, tmp_path: Path) -> None:
    folder = save_with_peft(base_dir, tmp_path / "a", PLAIN)
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:20])
    with pytest.raises(ModelError, match="cannot be read"):
        stored_shape(folder)
    change_config(folder, use_dora=True)
    with pytest.raises(UnsupportedAdapterError, match="DoRA"):
        stored_shape(folder)
