"""The pass against the layer-by-layer reference on every architecture: the same norms and masks, bit for bit,
however the examples are batched."""

from typing import Any

import numpy as np
import pytest
import torch

from autoclave.data.tokens import Example
from autoclave.errors import InputError
from autoclave.modelling.adapters import adapter_state, attach, detach
from autoclave.progress import Progress
from autoclave.sanitizing.activations import CPU_BATCH_TOKENS, ActivationNorm, input_norms
from autoclave.sanitizing.antidote import Antidote
from autoclave.spec import ATTENTION_QKV, LoraSpec
from tests.autoclave.sanitizing import reference
from tests.autoclave.tiny_architectures import ALL_ARCHITECTURES, ARCHITECTURES, SLIDING_WINDOW, tiny_model
from tests.autoclave.training.test_loss import random_examples

EXAMPLES = random_examples(7, seed=8, longest=24)
ALPHAS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.25)
BATCHINGS: dict[str, dict[str, Any]] = {
    "one": {"batch_tokens": 1},
    "some": {"batch_tokens": 50},
    "all": {"batch_tokens": 100_000},
    "packed": {"batch_tokens": 40, "packed": True},
    "packed, all": {"batch_tokens": 100_000, "packed": True},
}


def adapted(model: Any, target: Any, r: int, seed: int = 2) -> Any:
    """With a random adapter; the dropout shows whether the pass switches it off."""
    peft_model = attach(model, LoraSpec(r=r, target_modules=target, lora_dropout=0.3), seed=1)
    generator = torch.Generator().manual_seed(seed)
    for tensor in adapter_state(peft_model).values():
        tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.2)
    return peft_model


def same_norms(a: dict[str, ActivationNorm], b: dict[str, torch.Tensor]) -> bool:
    return list(a) == list(b) and all(torch.equal(a[name].norm, b[name]) for name in a)


def shuffled(examples: list[Example]) -> list[Example]:
    return [examples[i] for i in np.random.default_rng(1).permutation(len(examples))]


@pytest.mark.parametrize("target", [ATTENTION_QKV, "all-linear"], ids=["qkv", "all"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_norms_and_masks_are_those_of_the_reference(architecture: str, target: Any) -> None:
    base = tiny_model(architecture)
    for r in (4, 16, 64):
        model = adapted(base, target, r)
        found = {name: input_norms(model, EXAMPLES, device="cpu", **how) for name, how in BATCHINGS.items()}
        found["shuffled"] = input_norms(model, shuffled(EXAMPLES), device="cpu")
        expected = reference.norms(model, EXAMPLES)
        for name, norms in found.items():
            assert same_norms(norms, expected), name
        for alpha in ALPHAS:
            masks = reference.masks(model, expected, alpha)
            antidote = Antidote(model, found["packed"]).masks(alpha)
            assert list(antidote) == list(masks)
            assert all(np.array_equal(antidote[n].numpy(), masks[n]) for n in masks), alpha
        base = detach(model)


@pytest.mark.parametrize("architecture", [name for name in ALL_ARCHITECTURES if name not in ARCHITECTURES])
def test_norms_of_other_architectures(architecture: str) -> None:
    """The reference leaves routers, soft caps and some norms of theirs in float32, so it is near only; the
    batchings agree to the last bit."""
    model = adapted(tiny_model(architecture), "all-linear", 4)
    found = [input_norms(model, EXAMPLES, device="cpu", **how) for how in BATCHINGS.values()]
    expected = reference.norms(model, EXAMPLES)
    for norms in found:
        assert same_norms(norms, {name: found[0][name].norm for name in found[0]})
        for name, norm in norms.items():
            torch.testing.assert_close(norm.norm, expected[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_authors_float32_masks_differ_at_near_ties_only(architecture: str) -> None:
    """Their arithmetic is not ours: where it prunes another entry, its own scores of the two are
    within 1e-5 of each other."""
    differing = entries = 0
    for r in (4, 16, 64):
        model = adapted(tiny_model(architecture), "all-linear", r)
        antidote = Antidote.from_pass(model, EXAMPLES, device="cpu")
        norms = reference.authors_norms(model, EXAMPLES)
        scores = reference.scores(model, norms)
        for alpha in ALPHAS:
            masks = antidote.masks(alpha)
            for name, theirs in reference.masks(model, norms, alpha).items():
                threshold = np.where(theirs, scores[name], np.inf).min(axis=1, keepdims=True)
                differs = theirs != masks[name].numpy()
                distance = np.abs(scores[name] - threshold) / threshold
                assert not (differs & (distance > 1e-5)).any(), (name, alpha)
                differing += int(differs.sum())
                entries += theirs.size
    assert differing <= 1e-4 * entries, (differing, entries)


@pytest.mark.parametrize("architecture", ["llama", "opt"])
def test_the_mean_of_norms(architecture: str) -> None:
    """The paper's text. A mean of roots is another number than the root of a mean."""
    model = adapted(tiny_model(architecture), "all-linear", 4)
    expected = reference.norms(model, EXAMPLES, "mean")
    for name, how in BATCHINGS.items():
        assert same_norms(input_norms(model, EXAMPLES, device="cpu", kind="mean", **how), expected), name
    rms = reference.norms(model, EXAMPLES)
    assert all((expected[name] < rms[name]).any() for name in rms)


def test_examples_are_longer_than_the_sliding_window() -> None:
    """Else masks of a window and of full attention would be the same above."""
    assert max(len(example) for example in EXAMPLES) > 2 * SLIDING_WINDOW


def test_the_model_is_left_as_it_was() -> None:
    model = adapted(tiny_model("gemma").to(torch.bfloat16), "all-linear", 4)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    before = {name: (t.data_ptr(), t.dtype, t.clone()) for name, t in tensors.items()}
    assert {dtype for _, dtype, _ in before.values()} == {torch.bfloat16, torch.float32}, "base and adapter"
    head = model.get_base_model().lm_head.weight
    input_norms(model, EXAMPLES, device="cpu")
    assert head is model.get_base_model().lm_head.weight is model.get_input_embeddings().weight, "still tied"
    after = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    assert after.keys() == before.keys()
    for name, (pointer, dtype, values) in before.items():
        assert (after[name].data_ptr(), after[name].dtype) == (pointer, dtype), name
        assert torch.equal(after[name], values), name
    assert not model.training


def test_a_bfloat16_base_is_measured_in_float64_too() -> None:
    model = adapted(tiny_model("llama").to(torch.bfloat16), "all-linear", 4)
    assert same_norms(
        input_norms(model, EXAMPLES, device="cpu", batch_tokens=60), reference.norms(model, EXAMPLES)
    )


def test_in_the_precision_of_the_model_the_last_bits_depend_on_batching() -> None:
    """What float64 is for; on CUDA this is the default."""
    model = adapted(tiny_model("llama"), "all-linear", 4)
    exact = input_norms(model, EXAMPLES, device="cpu")
    alone, together = (
        input_norms(model, EXAMPLES, device="cpu", precision="model", batch_tokens=n) for n in (1, 100_000)
    )
    assert any(not torch.equal(alone[n].norm, together[n].norm) for n in alone)
    for norms in (alone, together):
        for name, norm in norms.items():
            torch.testing.assert_close(norm.norm, exact[name].norm, rtol=1e-5, atol=0)


def test_every_token_counts_and_padding_does_not() -> None:
    model = adapted(tiny_model("llama"), ("q_proj",), 4)
    unlabelled = [Example(e.input_ids, np.full_like(e.labels, -100)) for e in EXAMPLES]
    a = input_norms(model, EXAMPLES, device="cpu", batch_tokens=100_000)
    b = input_norms(model, unlabelled, device="cpu", batch_tokens=100_000)
    assert all(torch.equal(a[n].norm, b[n].norm) for n in a)
    norm = next(iter(a.values()))
    assert (norm.num_samples, norm.num_tokens) == (7, sum(len(e) for e in EXAMPLES))
    assert norm.norm.dtype == torch.float32


def test_passes_after_the_first_end_at_the_last_factor() -> None:
    model = adapted(tiny_model("llama"), ATTENTION_QKV, 4)
    calls = []
    for name in ("layers.1.mlp", "layers.0.mlp"):
        model.get_base_model().model.get_submodule(name).register_forward_hook(
            lambda *_, name=name: calls.append(name)
        )
    input_norms(model, EXAMPLES, device="cpu", batch_tokens=1)
    assert (calls.count("layers.0.mlp"), calls.count("layers.1.mlp")) == (len(EXAMPLES), 1)


def test_a_factor_that_is_used_twice_is_counted_twice() -> None:
    """Then no pass may end early. In the first batch none does, and one batch is all there is."""
    model = adapted(tiny_model("llama"), ATTENTION_QKV, 4)
    first, second = model.get_base_model().model.layers
    second.self_attn.q_proj = first.self_attn.q_proj
    one, many = (input_norms(model, EXAMPLES, device="cpu", batch_tokens=n) for n in (100_000, 1))
    assert len(one) == 10
    assert all(torch.equal(one[name].norm, many[name].norm) for name in one)


def test_batches_on_a_cpu_stay_in_the_cache() -> None:
    model = adapted(tiny_model("llama"), ("q_proj",), 4)
    seen: list[Progress] = []
    examples = random_examples(100, longest=60)
    input_norms(model, examples, device="cpu", batch_tokens=100_000, on_progress=seen.append)
    assert len(seen) >= sum(len(e) for e in examples) / CPU_BATCH_TOKENS > 2


@pytest.mark.parametrize("packed", [False, True])
def test_progress_and_cleanup(packed: bool) -> None:
    model = adapted(tiny_model("llama"), ("q_proj",), 4)
    seen: list[Progress] = []
    input_norms(model, EXAMPLES, device="cpu", batch_tokens=40, packed=packed, on_progress=seen.append)
    assert [p.step for p in seen] == list(range(1, seen[0].total_steps + 1))
    assert len(seen) > 1
    assert all(p.stage == "sanitize" for p in seen)

    def cancel(_: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        input_norms(model, EXAMPLES, device="cpu", packed=packed, on_progress=cancel)
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert (torch.ones(1) * torch.ones(1)).dtype == torch.float32, "float64 arithmetic ended"
    with pytest.raises(InputError, match="realignment set is empty"):
        input_norms(model, [], device="cpu")
