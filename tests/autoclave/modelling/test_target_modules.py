"""Which layers of a loaded model can have an adapter, and what is said of those that cannot."""

from typing import Any

import pytest
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from autoclave.errors import ModelError
from autoclave.modelling.target_modules import linear_layer_names, resolve_target_modules
from tests.autoclave.tiny_architectures import tiny_model


@pytest.mark.parametrize(
    ("architecture", "attention"),
    [
        ("llama", ["k_proj", "o_proj", "q_proj", "v_proj"]),
        ("phi", ["dense", "k_proj", "q_proj", "v_proj"]),
        ("phi3", ["o_proj", "qkv_proj"]),
        ("opt", ["k_proj", "out_proj", "q_proj", "v_proj"]),
        ("qwen2_moe", ["k_proj", "o_proj", "q_proj", "v_proj"]),
    ],
)
def test_attention(architecture: str, attention: list[str]) -> None:
    assert resolve_target_modules(tiny_model(architecture), "attention") == attention


def test_routers_and_gates_of_shared_experts_are_left_alone() -> None:
    model = tiny_model("qwen2_moe")
    names = linear_layer_names(model)
    assert {name.rpartition(".")[2] for name in names} == {
        *("down_proj", "gate_proj", "up_proj"),  # of the expert that all tokens share
        *("k_proj", "o_proj", "q_proj", "v_proj"),
    }
    with pytest.raises(ModelError, match=r"\['shared_expert_gate'\] are not linear layers"):
        resolve_target_modules(model, ("shared_expert_gate",))


def test_fused_experts_are_refused_by_name() -> None:
    with pytest.raises(ModelError, match="gate_up_proj belongs to the experts"):
        resolve_target_modules(tiny_model("mixtral"), ("q_proj", "gate_up_proj"))


def test_the_embeddings_and_the_head_are_no_choice() -> None:
    for name in ("lm_head", "embed_tokens"):
        with pytest.raises(ModelError, match=rf"\['{name}'\] are not linear layers .*q_proj"):
            resolve_target_modules(tiny_model("llama"), (name,))


def test_a_name_that_another_layer_shares() -> None:
    """PEFT goes by the last part, so it would adapt both."""
    model = tiny_model("llama")
    model.model.up_proj = nn.Linear(4, 4)
    names = resolve_target_modules(model, "all-linear")
    assert "up_proj" not in names
    assert "down_proj" in names
    with pytest.raises(ModelError, match=r"alone .model.up_proj has that name too"):
        resolve_target_modules(model, ("up_proj",))


def test_transposed_layers_are_refused_by_name() -> None:
    config: Any = GPT2Config(
        vocab_size=262, n_embd=32, n_layer=1, n_head=4, bos_token_id=None, eos_token_id=1
    )
    with pytest.raises(ModelError, match=r"GPT2LMHeadModel is not supported: no torch.nn.Linear .*Conv1D"):
        resolve_target_modules(GPT2LMHeadModel(config), "all-linear")


def test_a_base_whose_attention_has_no_layers_of_its_own() -> None:
    model = tiny_model("llama")
    for layer in model.model.layers:
        layer.mixer = layer.self_attn
        del layer.self_attn
    with pytest.raises(ModelError, match='"attention" means nothing'):
        resolve_target_modules(model, "attention")
