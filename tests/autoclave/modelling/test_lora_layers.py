"""Layers of a model that are computed by `lora_linear` give what PEFT's give, joined where they may be."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from autoclave.modelling import lora_layers
from autoclave.modelling.adapters import attach
from autoclave.modelling.lora_layers import short_lora
from autoclave.spec import LoraSpec
from tests.autoclave.tiny_architectures import ARCHITECTURES, tiny_model


@pytest.mark.parametrize("joined", [True, False], ids=["joined", "one-by-one"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_model_is_the_same(architecture: str, joined: bool) -> None:
    model = tiny_model(architecture).double()
    model = attach(model, LoraSpec(r=4, target_modules="all-linear"), seed=1).double()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.3)
    ids = torch.arange(20).view(2, 10) + 3
    parameters = [p for p in model.parameters() if p.requires_grad]

    def values() -> list[Tensor]:
        logits = model(input_ids=ids).logits
        return [logits, *torch.autograd.grad(logits.square().sum(), parameters)]

    expected = values()
    forwards = [module.forward for module in model.modules()]
    with short_lora(model, joined=joined) as count:
        assert count == len(parameters) / 2 > 0
        found = values()
        with torch.no_grad(), model.disable_adapter():
            off = model(input_ids=ids).logits
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6 * b.abs().max().item())
    with torch.no_grad(), model.disable_adapter():
        assert torch.equal(off, model(input_ids=ids).logits)
    assert [module.forward for module in model.modules()] == forwards


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # PEFT's own
def test_layers_that_do_more_stay_with_peft() -> None:
    def count(model: Any) -> int:
        with short_lora(model) as changed:
            return changed

    assert count(attach(tiny_model("llama"), LoraSpec(r=2), seed=0)) == 6
    assert count(attach(tiny_model("llama"), LoraSpec(r=2, lora_dropout=0.1), seed=0)) == 0
    trained = attach(tiny_model("llama"), LoraSpec(r=2), seed=0)
    for name, parameter in trained.named_parameters():
        if "layers.0" in name and "base_layer" in name:
            parameter.requires_grad_(True)
    assert count(trained) == 3
    assert count(tiny_model("llama")) == 0


class Calls:
    """How many layers each call of `lora_linears` and `gated_mlp` had."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.linears: list[int] = []
        self.mlps = 0
        lora_linears, gated_mlp = lora_layers.lora_linears, lora_layers.gated_mlp

        def linears(inputs: Tensor, layers: Any) -> Any:
            self.linears.append(len(layers))
            return lora_linears(inputs, layers)

        def mlp(*arguments: Any) -> Any:
            self.mlps += 1
            return gated_mlp(*arguments)

        monkeypatch.setattr(lora_layers, "lora_linears", linears)
        monkeypatch.setattr(lora_layers, "gated_mlp", mlp)


def adapted(architecture: str, **changes: Any) -> Any:
    return attach(tiny_model(architecture), LoraSpec(r=2, **changes), seed=0).eval()


IDS = torch.arange(10)[None] + 3


def test_what_reads_the_same_rows_is_computed_together(monkeypatch: pytest.MonkeyPatch) -> None:
    model, calls = adapted("llama", target_modules="all-linear"), Calls(monkeypatch)
    layers = model.config.num_hidden_layers
    with short_lora(model):
        model(input_ids=IDS)
    assert calls.linears == [3, 1] * layers  # query, key and value; output
    assert calls.mlps == layers
    calls.linears.clear()
    with short_lora(model, joined=False):
        model(input_ids=IDS)
    assert calls.linears == [1] * 7 * layers
    assert calls.mlps == layers


def test_an_mlp_with_another_activation_is_no_gated_mlp(monkeypatch: pytest.MonkeyPatch) -> None:
    model, calls = adapted("llama", target_modules="all-linear"), Calls(monkeypatch)
    for layer in model.get_base_model().model.layers:
        layer.mlp.act_fn = nn.GELU()
    with short_lora(model):
        model(input_ids=IDS)
    assert calls.linears == [3, 1, 2, 1] * model.config.num_hidden_layers
    assert calls.mlps == 0


def test_who_looks_into_an_mlp_sees_it_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    model, calls = adapted("llama", target_modules="all-linear"), Calls(monkeypatch)
    seen = []
    with short_lora(model):
        plain = model(input_ids=IDS).logits
        first = model.get_base_model().model.layers[0].mlp.down_proj
        handle = first.register_forward_hook(lambda _module, _inputs, output: seen.append(output.shape))
        hooked = model(input_ids=IDS).logits
        handle.remove()
    assert len(seen) == 1
    assert calls.mlps == 2 * model.config.num_hidden_layers - 1
    torch.testing.assert_close(hooked, plain)


def attention_of(model: Any) -> Any:
    return model.get_base_model().model.layers[0].self_attn


def test_another_tensor_is_computed_for_itself() -> None:
    model = adapted("llama", target_modules=["q_proj", "k_proj", "v_proj"])
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.3)
    attention, (first, second) = attention_of(model), torch.randn(2, 1, 4, 32)
    with torch.no_grad():
        expected = attention.k_proj(second), attention.v_proj(first), attention.k_proj(first * 2)
    with short_lora(model), torch.no_grad():
        attention.q_proj(first)
        assert torch.allclose(attention.k_proj(second), expected[0], atol=1e-6)  # not the first
        assert torch.allclose(attention.v_proj(first), expected[1], atol=1e-6)
        attention.q_proj(first)
        first.mul_(2)  # the same tensor with another content
        assert torch.allclose(attention.k_proj(first), expected[2], atol=1e-6)


def test_what_was_computed_without_a_graph_is_not_used_for_one() -> None:
    model = adapted("llama", target_modules=["q_proj", "k_proj", "v_proj"])
    attention, inputs = attention_of(model), torch.randn(1, 4, 32)
    with short_lora(model):
        with torch.no_grad():
            attention.q_proj(inputs)
        assert attention.k_proj(inputs).requires_grad


def test_nothing_is_kept_of_outputs_that_were_taken() -> None:
    model = adapted("llama", target_modules=["q_proj", "k_proj", "v_proj"])
    with short_lora(model):
        model(input_ids=IDS)
        forward = attention_of(model).q_proj.forward
        (same_rows,) = (
            cell.cell_contents
            for cell in forward.__closure__
            if isinstance(cell.cell_contents, lora_layers._SameRows)
        )
        assert same_rows._kept is None
