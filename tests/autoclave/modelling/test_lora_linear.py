"""The short LoRA layer computes what PEFT's does, and rows of different adapters do not meet."""

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from autoclave.modelling.adapters import attach
from autoclave.modelling.lora_linear import Factors, Segment, lora_linear, short_lora
from autoclave.spec import LoraSpec
from tests.autoclave.tiny_architectures import ARCHITECTURES, tiny_model

LAYER = nn.Linear(6, 5).requires_grad_(False).double()


def factors(seed: int, rank: int = 3, scale: float = 2.0) -> Factors:
    generator = torch.Generator().manual_seed(seed)
    A = torch.randn(rank, 6, generator=generator, dtype=torch.float64).requires_grad_()
    B = torch.randn(5, rank, generator=generator, dtype=torch.float64).requires_grad_()
    return Factors(A, B, scale)


def test_every_row_goes_through_its_own_factors() -> None:
    torch.manual_seed(0)
    first, second = factors(1), factors(2, rank=1, scale=0.5)
    inputs = torch.randn(1, 9, 6, dtype=torch.float64).requires_grad_()
    outputs = lora_linear(inputs, LAYER.weight, LAYER.bias, [Segment(0, 4, first), Segment(4, 7, second)])
    parts = [
        LAYER(inputs[:, :4]) + 2.0 * inputs[:, :4] @ first.A.T @ first.B.T,
        LAYER(inputs[:, 4:7]) + 0.5 * inputs[:, 4:7] @ second.A.T @ second.B.T,
        LAYER(inputs[:, 7:]),
    ]
    expected = torch.cat(parts, dim=1)
    torch.testing.assert_close(outputs, expected)
    leaves = [inputs, *first[:2], *second[:2]]
    weights = torch.randn_like(outputs)
    found, wanted = (torch.autograd.grad((out * weights).sum(), leaves) for out in (outputs, expected))
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_gradients_against_differences() -> None:
    torch.manual_seed(0)
    inputs = torch.randn(2, 3, 6, dtype=torch.float64).requires_grad_()
    one, other = factors(1), factors(2)

    def run(inputs: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
        segments = [Segment(1, 3, Factors(a, b, 0.7)), Segment(3, 6, Factors(c, d, 1.3))]
        return lora_linear(inputs, LAYER.weight, None, segments)

    assert torch.autograd.gradcheck(run, (inputs, *one[:2], *other[:2]))


def test_not_a_number_stays_in_its_rows() -> None:
    broken = Factors(torch.full((2, 6), torch.nan, dtype=torch.float64).requires_grad_(), *factors(1, 2)[1:])
    good = factors(2)
    inputs = torch.randn(8, 6, dtype=torch.float64).requires_grad_()

    def gradients(neighbour: Factors) -> list[Tensor]:
        outputs = lora_linear(
            inputs, LAYER.weight, LAYER.bias, [Segment(0, 4, neighbour), Segment(4, 8, good)]
        )
        by_inputs, *own = torch.autograd.grad(outputs.square().sum(), [inputs, *good[:2]])
        return [outputs[4:].detach(), by_inputs[4:], *own]

    for a, b in zip(gradients(broken), gradients(factors(3)), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_model_is_the_same(architecture: str) -> None:
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
    with short_lora(model) as count:
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


def test_factors_in_float32_on_a_base_in_bfloat16() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(32, 24, dtype=torch.bfloat16).requires_grad_(False)
    A, B = (torch.randn(*shape) / 6 for shape in ((4, 32), (24, 4)))
    inputs = torch.randn(10, 32, dtype=torch.bfloat16).requires_grad_()
    leaves = (A.requires_grad_(), B.requires_grad_())
    outputs = lora_linear(inputs, layer.weight, layer.bias, [Segment(0, 10, Factors(A, B, 2.0))])
    assert outputs.dtype == torch.bfloat16
    exact = deepcopy(layer).float()(inputs.float()) + 2.0 * inputs.float() @ A.T @ B.T
    assert (outputs - exact).abs().max() < 0.02 * exact.abs().max()
    found = torch.autograd.grad(outputs.float().square().sum(), leaves)
    wanted = torch.autograd.grad(exact.square().sum(), leaves)
    for a, b in zip(found, wanted, strict=True):
        assert a.dtype == torch.float32
        assert (a - b).abs().max() < 0.03 * b.abs().max()
