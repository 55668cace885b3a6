"""Rotary positions in one autograd step give what transformers' functions give."""

import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from autoclave.modelling.backbone import backbone_of
from autoclave.modelling.short_rotary import _rotated, short_rotary
from tests.autoclave.tiny_architectures import ARCHITECTURES, tiny_model

IDS = torch.arange(20).view(2, 10) + 3
WITHOUT = {"opt"}  # its positions are embeddings


def module_of(model: Any) -> Any:
    return sys.modules[type(backbone_of(model).decoder).__module__]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_model_is_the_same(architecture: str) -> None:
    model = tiny_model(architecture).requires_grad_(False).eval()
    embeddings = model.get_input_embeddings()(IDS).requires_grad_()
    before = getattr(module_of(model), "apply_rotary_pos_emb", None)

    def values() -> list[Tensor]:
        logits = model(inputs_embeds=embeddings).logits
        return [logits.detach(), *torch.autograd.grad(logits.square().sum(), embeddings)]

    expected = values()
    with short_rotary(model) as is_short:
        found = values()
        assert (getattr(module_of(model), "apply_rotary_pos_emb", None) is not before) == is_short
    assert is_short == (architecture not in WITHOUT)
    assert getattr(module_of(model), "apply_rotary_pos_emb", None) is before
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * b.abs().max().item())


def test_gradients_against_differences() -> None:
    torch.manual_seed(0)
    states = torch.randn(1, 2, 3, 6, dtype=torch.float64).requires_grad_()
    cos, sin = torch.randn(2, 1, 3, 6, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: _rotated(x, cos, sin), (states,))


def test_calls_of_another_form_go_to_the_function_itself() -> None:
    model = tiny_model("llama")
    plain = module_of(model).apply_rotary_pos_emb
    q, k = torch.randn(1, 3, 2, 8), torch.randn(1, 3, 1, 8)  # positions before heads
    cos, sin = torch.randn(2, 1, 3, 8)
    expected = plain(q, k, cos, sin, unsqueeze_dim=2)
    half = [tensor.bfloat16() for tensor in (q, k, cos, sin)]
    expected_half = plain(*half, unsqueeze_dim=2)
    with short_rotary(model):
        found = module_of(model).apply_rotary_pos_emb(q, k, cos, sin, unsqueeze_dim=2)
        found_half = module_of(model).apply_rotary_pos_emb(*half, unsqueeze_dim=2)
    for a, b in zip((*found, *found_half), (*expected, *expected_half), strict=True):
        assert torch.equal(a, b)


def test_another_rotation_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")

    def interleaved(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        return q * cos + q.roll(1, -1) * sin, k * cos + k.roll(1, -1) * sin

    monkeypatch.setattr(module_of(model), "apply_rotary_pos_emb", interleaved)
    with short_rotary(model) as is_short:
        assert not is_short
        assert module_of(model).apply_rotary_pos_emb is interleaved
