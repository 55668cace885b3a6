"""LoRA layers, several at once and as a gated MLP, compute what they are written out to be."""

from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn import functional

from autoclave.modelling.lora_linear import gated_mlp, lora_linears
from autoclave.modelling.lora_products import Factors, Layer, Segment

LAYER = nn.Linear(6, 5).requires_grad_(False).double()


def lora_linear(inputs: Tensor, weight: Tensor, bias: Tensor | None, segments: list[Segment]) -> Tensor:
    (output,) = lora_linears(inputs, [Layer(weight, bias, segments)])
    return output


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


def random_layer(out: int, inputs: int, segments: list[tuple[int, int, int, float]]) -> Layer:
    """Segments are (start, end, rank, scale)."""
    weight, bias = torch.randn(out, inputs).double(), torch.randn(out).double()
    return Layer(
        weight,
        bias,
        [
            Segment(
                start,
                end,
                Factors(
                    torch.randn(rank, inputs).double().requires_grad_(),
                    torch.randn(out, rank).double().requires_grad_(),
                    scale,
                ),
            )
            for start, end, rank, scale in segments
        ],
    )


def plainly(rows: Tensor, layer: Layer) -> Tensor:
    """Row by row."""
    outputs = []
    for place, row in enumerate(rows):
        weight = layer.weight
        for start, end, (A, B, scale) in layer.segments:
            if start <= place < end:
                weight = weight + scale * B @ A
        outputs.append(weight @ row + (0 if layer.bias is None else layer.bias))
    return torch.stack(outputs)


def leaves_of(*layers: Layer) -> list[Tensor]:
    return [f for layer in layers for _, _, factors in layer.segments for f in (factors.A, factors.B)]


def assert_same(found: Tensor, expected: Tensor, leaves: list[Tensor]) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    weights = torch.randn_like(found)
    by_found, by_expected = (torch.autograd.grad((out * weights).sum(), leaves) for out in (found, expected))
    for a, b in zip(by_found, by_expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_layers_on_the_same_rows_have_factors_of_their_own() -> None:
    torch.manual_seed(0)
    rows = torch.randn(9, 6).double().requires_grad_()
    layers = [
        random_layer(5, 6, [(0, 4, 3, 2.0), (4, 7, 2, 0.5)]),
        random_layer(4, 6, [(4, 7, 1, 1.5), (7, 9, 2, 1.0)]),  # none for the first rows
        random_layer(7, 6, []),
    ]
    outputs = lora_linears(rows[None], layers)
    assert [tuple(output.shape) for output in outputs] == [(1, 9, 5), (1, 9, 4), (1, 9, 7)]
    expected = [plainly(rows, layer) for layer in layers]
    assert_same(
        torch.cat([output[0] for output in outputs], dim=1),
        torch.cat(expected, dim=1),
        [rows, *leaves_of(*layers)],
    )
    with torch.no_grad():
        for output, wanted in zip(lora_linears(rows, layers), expected, strict=True):
            torch.testing.assert_close(output, wanted, rtol=1e-10, atol=1e-10)


def test_an_output_that_nobody_uses() -> None:
    torch.manual_seed(0)
    rows = torch.randn(4, 6).double().requires_grad_()
    layers = [random_layer(5, 6, [(0, 4, 2, 2.0)]), random_layer(4, 6, [(0, 4, 2, 2.0)])]
    leaves = [rows, *leaves_of(layers[0])]
    assert_same(lora_linears(rows, layers)[0], plainly(rows, layers[0]), leaves)


def test_the_gated_mlp() -> None:
    torch.manual_seed(0)
    rows = torch.randn(8, 6).double().requires_grad_()
    gate = random_layer(10, 6, [(0, 5, 2, 2.0)])
    up = random_layer(10, 6, [(0, 5, 3, 0.5), (5, 8, 1, 1.0)])
    down = random_layer(6, 10, [(5, 8, 2, 1.0)])
    expected = plainly(functional.silu(plainly(rows, gate)) * plainly(rows, up), down)
    assert_same(gated_mlp(rows, gate, up, down), expected, [rows, *leaves_of(gate, up, down)])
    with torch.no_grad():
        torch.testing.assert_close(gated_mlp(rows, gate, up, down), expected, rtol=1e-10, atol=1e-10)


def test_the_gated_mlp_of_rows_that_need_no_gradient() -> None:
    torch.manual_seed(0)
    rows = torch.randn(4, 6).double()
    gate, up, down = (random_layer(*shape, [(0, 4, 2, 2.0)]) for shape in ((10, 6), (10, 6), (6, 10)))
    expected = plainly(functional.silu(plainly(rows, gate)) * plainly(rows, up), down)
    assert_same(gated_mlp(rows, gate, up, down), expected, leaves_of(gate, up, down))
