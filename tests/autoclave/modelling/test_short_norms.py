"""Norms in one autograd step give what the model's own norms give."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from autoclave.modelling.short_norms import short_norms
from tests.autoclave.tiny_architectures import ARCHITECTURES, tiny_model

IDS = torch.arange(20).view(2, 10) + 3
WITHOUT = {"opt", "phi"}  # they have LayerNorm


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_model_is_the_same(architecture: str) -> None:
    model = tiny_model(architecture).requires_grad_(False).eval()
    embeddings = model.get_input_embeddings()(IDS).requires_grad_()

    def values() -> list[Tensor]:
        logits = model(inputs_embeds=embeddings).logits
        return [logits.detach(), *torch.autograd.grad(logits.square().sum(), embeddings)]

    expected = values()
    norms = [m for m in model.modules() if "Norm" in type(m).__name__]
    with short_norms(model) as count:
        found = values()
        with torch.no_grad():
            quiet = model(inputs_embeds=embeddings).logits
    assert count == (0 if architecture in WITHOUT else len(norms))
    for a, b in zip((*found, quiet), (*expected, expected[0]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * b.abs().max().item())
    assert all("forward" not in vars(module) for module in model.modules())


def test_gradients_against_differences() -> None:
    torch.manual_seed(0)
    norm = nn.RMSNorm(5, eps=1e-3).double().requires_grad_(False)
    nn.init.normal_(norm.weight)
    rows = torch.randn(2, 3, 5, dtype=torch.float64).requires_grad_()
    with short_norms(norm) as count:
        assert count == 1
        assert torch.autograd.gradcheck(norm, (rows,))


class MeanTaken(nn.RMSNorm):
    def forward(self, rows: Tensor) -> Tensor:
        return super().forward(rows - rows.mean(-1, keepdim=True))


@pytest.mark.parametrize(
    "norm",
    [
        nn.RMSNorm(5, eps=1e-3),  # trained
        MeanTaken(5, eps=1e-3).requires_grad_(False),
        nn.LayerNorm(5).requires_grad_(False),
        nn.RMSNorm(5, eps=1e-3, dtype=torch.bfloat16).requires_grad_(False),
        nn.RMSNorm(5).requires_grad_(False),  # torch's own eps
    ],
    ids=["trained", "another", "layer", "bfloat16", "no-eps"],
)
def test_others_are_left_as_they_are(norm: Any) -> None:
    with short_norms(norm) as count:
        assert count == 0
