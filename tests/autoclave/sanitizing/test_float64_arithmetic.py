"""Inside the block everything is float64, and nothing that was there before changes."""

import pytest
import torch
from torch.nn import functional

from autoclave.sanitizing.float64_arithmetic import Float64Arithmetic
from tests.autoclave.tiny_architectures import ALL_ARCHITECTURES, EAGER, tiny_model

X = torch.full((2, 3), 1 / 3)
W = torch.full((4, 3), 0.1)


def test_operations_on_lower_precision_give_float64() -> None:
    low = W.bfloat16()
    with Float64Arithmetic():
        results = {
            "linear": functional.linear(X, low),
            "matmul": X @ W.T,
            "promotion": X * torch.ones(3, dtype=torch.float64),
            "embedding": functional.embedding(torch.tensor([1]), W),
            "layer norm": functional.layer_norm(X, (3,), weight=torch.ones(3)),
            "softmax": functional.softmax(X, dim=-1, dtype=torch.float32),
            "to": X.double().to(torch.float32),
            "to, by name": X.double().to(dtype=torch.bfloat16),
            "float": X.double().float(),
            "half": X.double().half(),
            "type_as": X.double().type_as(X),
            "list": torch.cat([X, X.double()]),
            "factory": torch.zeros(2, dtype=torch.float32),
        }
    assert {name: result.dtype for name, result in results.items()} == dict.fromkeys(results, torch.float64)
    assert torch.equal(results["linear"], X.double() @ low.double().T)
    assert functional.linear(X, W).dtype == torch.float32, "the block has ended"


def test_what_is_no_float_stays() -> None:
    with Float64Arithmetic():
        assert torch.arange(3).dtype == torch.int64
        assert (X > 0).dtype == torch.bool
        assert X.dtype == torch.float32
        buffer = torch.zeros_like(W)
        target = W.clone()
    assert buffer.dtype == target.dtype == torch.float64
    kept = torch.zeros(3)
    with Float64Arithmetic():
        kept.add_(torch.ones(3, dtype=torch.float64) / 3)
        kept[0] = 2.0
    assert kept.dtype == torch.float32
    assert kept.tolist() == [2.0, *(torch.ones(2) / 3).tolist()]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("architecture", ALL_ARCHITECTURES)
def test_a_model_is_float64_to_the_last_layer(architecture: str, attention: str) -> None:
    """Whatever a module gives inside is float64, and the result lies near the float32 one."""
    model = tiny_model(architecture)
    if architecture in EAGER and attention != "eager":
        pytest.skip("transformers has no such attention for it")
    model.set_attn_implementation(attention)
    dtypes = set()
    for module in model.modules():
        module.register_forward_hook(
            lambda _, inputs, output: dtypes.update(
                {output.dtype} if isinstance(output, torch.Tensor) else {}
            )
        )
    ids = torch.arange(20)[None] * 7
    with torch.no_grad():
        with Float64Arithmetic():
            exact = model(input_ids=ids, use_cache=False).logits
        assert dtypes == {torch.float64}
        rounded = model(input_ids=ids, use_cache=False).logits
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded.double(), exact, rtol=1e-3, atol=1e-4)
