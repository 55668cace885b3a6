"""An adapter made on no model is the one that `attach` makes, bit by bit."""

from typing import Any

import pytest
import torch

from autoclave.errors import ModelError
from autoclave.modelling.adapter_shape import adapter_shape
from autoclave.modelling.adapters import adapter_state, attach, fresh_adapter
from autoclave.spec import LoraSpec
from tests.autoclave.tiny_architectures import ARCHITECTURES, tiny_model


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("targets", [("q_proj", "v_proj"), "all-linear"], ids=str)
def test_the_same_as_attached(architecture: str, targets: Any) -> None:
    lora = LoraSpec(r=3, lora_alpha=6.5, target_modules=targets)
    model = tiny_model(architecture)
    before = [name for name, _ in model.named_parameters()]
    state, config, layers = fresh_adapter(model, lora, seed=5)
    assert [name for name, _ in model.named_parameters()] == before
    attached = attach(model, lora, seed=5)
    expected = adapter_state(attached)
    assert state.keys() == expected.keys()
    for name, tensor in expected.items():
        assert state[name].dtype == tensor.dtype
        assert torch.equal(state[name], tensor), name
    assert tuple(sorted(layers)) == adapter_shape(attached).target_modules
    assert set(config.target_modules or ()) == set(attached.peft_config["default"].target_modules)


def test_factors_of_a_base_in_bfloat16_are_float32() -> None:
    state, _, _ = fresh_adapter(tiny_model("llama").bfloat16(), LoraSpec(r=2), seed=0)
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}


def test_unknown_modules_are_refused() -> None:
    with pytest.raises(ModelError, match="are not linear layers"):
        fresh_adapter(tiny_model("llama"), LoraSpec(target_modules=("x",)), seed=0)
