"""The last MLP, for the tokens alone that are read: the same states and gradients, from fewer rows."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from autoclave.data.tokens import pack
from autoclave.modelling.adapters import attach
from autoclave.modelling.backbone import backbone_of
from autoclave.modelling.last_mlp import LastMlp
from autoclave.modelling.layer_parts import outputs_of
from autoclave.modelling.packing import PackedBackbone
from autoclave.spec import LoraSpec
from autoclave.training.loss import packed_causal_loss
from tests.autoclave.tiny_architectures import ALL_ARCHITECTURES, tiny_model
from tests.autoclave.training.test_loss import random_examples

LENGTHS = [11, 1, 18, 4]
IDS = torch.randint(6, 262, (1, sum(LENGTHS)), generator=torch.Generator().manual_seed(0))
TOKENS = torch.tensor([0, 3, 11, 12, 13, 29, 33])
WEIGHTS = torch.randn(len(TOKENS), 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def adapted(architecture: str) -> Any:
    model = tiny_model(architecture).double()
    if hasattr(model.config, "num_experts_per_tok"):
        model.set_experts_implementation("eager")  # the other one takes no float64
    model = attach(model, LoraSpec(r=4, target_modules="all-linear"), seed=1).double().eval()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(2))
    return model


def last_mlp(model: Any) -> Any:
    return backbone_of(model).decoder.layers[-1].mlp


def rows_seen(mlp: Any, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows the MLP is given, from now on; not by a hook, which would have it see all."""
    seen: list[int] = []
    forward = mlp.forward

    def watched(hidden: Tensor) -> Any:
        seen.append(hidden.numel() // hidden.shape[-1])
        return forward(hidden)

    monkeypatch.setattr(mlp, "forward", watched)
    return seen


@pytest.mark.parametrize("architecture", ALL_ARCHITECTURES)
def test_states_and_gradients_are_those_of_all_rows(
    architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = adapted(architecture)
    packed = PackedBackbone(backbone_of(model), "cpu")
    if architecture == "opt":  # its layers have no module of that name
        assert packed._last_mlp is None
        return
    assert packed._last_mlp is not None
    parameters = [p for p in model.parameters() if p.requires_grad]
    seen = rows_seen(last_mlp(model), monkeypatch)

    def values(states: Tensor) -> list[Tensor]:
        return [states, *torch.autograd.grad((states * WEIGHTS).sum(), parameters)]

    expected = values(packed.hidden_states(IDS, LENGTHS)[0, TOKENS])
    found = values(packed.hidden_states_of(TOKENS, IDS, LENGTHS))
    assert seen == [len(IDS[0]), len(TOKENS)]
    for a, b in zip(found, expected, strict=True):  # norms inside are float32
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6 * b.abs().max().item())


def test_who_looks_at_the_outputs_sees_those_of_all_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    model = adapted("llama")
    loss, batch = packed_causal_loss(model, device="cpu"), pack(random_examples(4, seed=4))
    num_tokens, num_trained = batch.input_ids.shape[1] - 1, loss(model, batch).num_tokens
    assert num_trained < num_tokens
    seen = rows_seen(last_mlp(model), monkeypatch)
    plain = loss(model, batch).loss
    with outputs_of([last_mlp(model)]) as outputs:
        hooked = loss(model, batch).loss
    assert seen == [num_trained, num_tokens]
    assert outputs[0].shape[1] == num_tokens
    torch.testing.assert_close(hooked, plain, rtol=1e-9, atol=0)
    handle = last_mlp(model).down_proj.register_forward_pre_hook(lambda *_: None)
    loss(model, batch)
    handle.remove()
    loss(model, batch)
    assert seen == [num_trained, num_tokens, num_tokens, num_trained]


class LooksBack(nn.Module):
    def forward(self, hidden: Tensor) -> Tensor:
        return hidden.cumsum(dim=1)


class GivesMore(nn.Module):
    """For a layer that takes the first part of it."""

    def forward(self, hidden: Tensor) -> tuple[Tensor, None]:
        return hidden, None


def test_an_mlp_of_another_kind_is_computed_for_all() -> None:
    backbone = backbone_of(adapted("llama"))
    assert LastMlp.of(backbone, "cpu") is not None
    assert LastMlp.of(backbone, "cuda") is None
    layer = backbone.decoder.layers[-1]
    layer.mlp = LooksBack()
    assert LastMlp.of(backbone, "cpu") is None
    layer.mlp = GivesMore()
    layer.forward = lambda hidden, **_: layer.mlp(hidden)[0]
    assert LastMlp.of(backbone, "cpu") is None
    assert not layer.mlp._forward_hooks
    assert not layer.mlp._forward_pre_hooks
