"""The loss through a frozen head equals cross entropy over all logits, in value and gradient."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaForCausalLM

from autoclave.data.tokens import collate
from autoclave.modelling.adapters import attach
from autoclave.modelling.backbone import Backbone, backbone_of
from autoclave.spec import LoraSpec
from autoclave.training import head_loss
from autoclave.training.head_loss import token_losses, why_not_frozen
from autoclave.training.loss import causal_loss
from tests.autoclave.tiny import tiny_config
from tests.autoclave.training.test_loss import random_examples

Values = tuple[Tensor, Tensor, Tensor]


def frozen_head(
    vocabulary: int, dim: int, *, bias: bool = False, dtype: torch.dtype = torch.float64, **more: Any
) -> Backbone:
    head = nn.Linear(dim, vocabulary, bias=bias, dtype=dtype).requires_grad_(False)
    return Backbone(None, head, **more)


def reference(backbone: Backbone, hidden: Tensor, targets: Tensor, weights: Tensor) -> Values:
    """Losses, gradient of their weighted sum, and which are right; from all logits at once."""
    leaf = hidden.clone().requires_grad_()
    logits = backbone.logits(leaf)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    losses = functional.cross_entropy(logits, targets, reduction="none")
    (gradient,) = torch.autograd.grad((losses * weights).sum(), leaf)
    return losses.detach(), gradient, logits.argmax(dim=-1) == targets


def ours(backbone: Backbone, hidden: Tensor, targets: Tensor, weights: Tensor) -> Values:
    leaf = hidden.clone().requires_grad_()
    losses, is_right = token_losses(backbone, leaf, targets)
    (gradient,) = torch.autograd.grad((losses * weights).sum(), leaf)
    return losses.detach(), gradient, is_right


@given(
    rows=st.integers(1, 40),
    chunk_rows=st.integers(1, 12),
    vocabulary=st.integers(2, 60),
    bias=st.booleans(),
    scale=st.sampled_from([1.0, 0.25, 3.0]),
    softcap=st.sampled_from([None, 0.7, 30.0]),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=60, deadline=None)
def test_equal_to_full_logits(
    rows: int,
    chunk_rows: int,
    vocabulary: int,
    bias: bool,
    scale: float,
    softcap: float | None,
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    backbone = frozen_head(vocabulary, 8, bias=bias, logit_scale=scale, softcap=softcap)
    hidden = 3 * torch.randn(rows, 8, generator=generator, dtype=torch.float64)
    targets = torch.randint(vocabulary, (rows,), generator=generator)
    weights = torch.rand(rows, generator=generator, dtype=torch.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(head_loss.LOGITS_AT_ONCE, "cpu", chunk_rows * vocabulary)
        found = ours(backbone, hidden, targets, weights)
    for a, b in zip(found, reference(backbone, hidden, targets, weights), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("rows", [1, 63, 64, 65, 128])
def test_in_the_types_of_training(
    dtype: torch.dtype, tolerance: float, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(rows)
    monkeypatch.setitem(head_loss.LOGITS_AT_ONCE, "cpu", 64 * 500)
    backbone = frozen_head(500, 32, dtype=dtype)
    hidden = torch.randn(rows, 32, dtype=dtype) * 4
    targets = torch.randint(500, (rows,))
    weights = torch.full((rows,), 1 / rows)
    losses, gradient, is_right = ours(backbone, hidden, targets, weights)
    expected, expected_gradient, expected_right = reference(backbone, hidden, targets, weights)
    assert losses.dtype == torch.float32
    assert gradient.dtype == dtype
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-5)
    assert (gradient - expected_gradient).abs().max() <= tolerance * expected_gradient.abs().max()
    assert torch.equal(is_right, expected_right)


def test_logits_that_a_softmax_rounds_to_zero_have_their_loss() -> None:
    backbone = frozen_head(4, 4, dtype=torch.float32)
    with torch.no_grad():
        backbone.head.weight.copy_(torch.eye(4))
    hidden = torch.tensor([[500.0, -500.0, 0.0, 0.0]])
    losses, gradient, is_right = ours(backbone, hidden, torch.tensor([1]), torch.ones(1))
    assert losses.tolist() == [1000.0]
    assert gradient.tolist() == [[1.0, -1.0, 0.0, 0.0]]
    assert is_right.tolist() == [False]


def test_of_equal_logits_the_first_counts_as_the_highest() -> None:
    backbone = frozen_head(5, 4)
    _, is_right = token_losses(backbone, torch.zeros(2, 4, dtype=torch.float64), torch.tensor([0, 3]))
    assert is_right.tolist() == [True, False]


def test_nothing_but_a_few_rows_of_logits_exists_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[tuple[int, ...]] = []
    product = torch.mm

    def watched(*arguments: Any, **out: Any) -> Tensor:
        result = product(*arguments, **out)
        shapes.append(tuple(result.shape))
        return result

    monkeypatch.setitem(head_loss.LOGITS_AT_ONCE, "cpu", 16 * 50)
    monkeypatch.setattr(torch, "mm", watched)
    hidden = torch.randn(40, 8, dtype=torch.float64).requires_grad_()
    losses, _ = token_losses(frozen_head(50, 8), hidden, torch.zeros(40, dtype=torch.int64))
    losses.sum().backward()  # type: ignore[no-untyped-call]
    chunks = [(16, 50), (16, 8), (16, 50), (16, 8), (8, 50), (8, 8)]  # logits and gradient of each
    assert shapes == chunks, "and no product of the head in the backward pass"


def test_the_mean_of_a_step_is_the_same_however_it_is_accumulated() -> None:
    model = attach(LlamaForCausalLM(tiny_config()).requires_grad_(False), LoraSpec(r=4), seed=1).double()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # else it is 0 and hides the gradient of lora_A
            nn.init.normal_(parameter)
    examples = random_examples(6)
    parameters = [p for p in model.parameters() if p.requires_grad]

    def gradients(groups: list[list[Any]]) -> list[Tensor]:
        summed = [causal_loss(model, collate(group, pad_token_id=0)) for group in groups]
        total = sum(part.num_tokens for part in summed)
        mean = torch.stack([part.loss for part in summed]).sum() / total
        return list(torch.autograd.grad(mean, parameters))

    whole = gradients([examples])
    for cut in ([[e] for e in examples], [examples[:1], examples[1:]]):
        for a, b in zip(gradients(cut), whole, strict=True):
            # Norm layers compute in float32 whatever the model's type.
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def tied_and_trained() -> Any:
    model = LlamaForCausalLM(tiny_config(tie_word_embeddings=True)).requires_grad_(False)
    model.get_input_embeddings().weight.requires_grad_(True)
    return model


def with_lora_on_the_head() -> Any:
    return get_peft_model(LlamaForCausalLM(tiny_config()), LoraConfig(r=2, target_modules=["lm_head"]))


def with_the_head_saved() -> Any:
    config = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"])
    return get_peft_model(LlamaForCausalLM(tiny_config()), config)


def trained_head() -> Any:
    return LlamaForCausalLM(tiny_config())


def hooked_head() -> Any:
    model = LlamaForCausalLM(tiny_config()).requires_grad_(False)
    model.get_input_embeddings().weight.requires_grad_(True)
    model.lm_head.register_forward_hook(lambda _module, _inputs, output: output * 2)
    return model


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # PEFT's own
@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (with_lora_on_the_head, "no plain linear layer"),
        (with_the_head_saved, "no plain linear layer"),
        (trained_head, "is trained"),
        (tied_and_trained, "is trained"),
        (hooked_head, "hooks"),
    ],
)
def test_a_head_that_is_not_frozen_and_plain_is_computed_as_a_module(
    make: Callable[[], Any], reason: str
) -> None:
    torch.manual_seed(0)
    model = make().double()
    assert reason in (why_not_frozen(backbone_of(model).head) or "")
    batch = collate(random_examples(3), pad_token_id=0)
    loss, _, _ = causal_loss(model, batch)
    logits = model(input_ids=batch.input_ids).logits
    expected = functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), batch.labels[:, 1:].flatten(), reduction="sum"
    )
    assert loss.item() == pytest.approx(expected.item(), rel=1e-9)
    parameters = [p for p in model.parameters() if p.requires_grad]
    found, wanted = (
        torch.autograd.grad(value, parameters, allow_unused=True, retain_graph=True)
        for value in (loss, expected)
    )
    assert any(gradient is not None and gradient.any() for gradient in wanted)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-9)


def test_a_plain_frozen_head_is_not_refused() -> None:
    model = LlamaForCausalLM(tiny_config()).requires_grad_(False)
    assert why_not_frozen(backbone_of(model).head) is None
