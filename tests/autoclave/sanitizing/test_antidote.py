"""The one-pass Antidote against the layer-by-layer reference: the same masks, bit for bit."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from autoclave.data.tokens import Example
from autoclave.errors import InputError
from autoclave.modelling.adapters import adapter_state, attach
from autoclave.modelling.bases import load_base
from autoclave.progress import Progress
from autoclave.sanitizing.activations import input_second_moments
from autoclave.sanitizing.antidote import Antidote
from autoclave.spec import LoraSpec
from tests.autoclave.sanitizing import reference
from tests.autoclave.training.test_loss import random_examples

EXAMPLES = random_examples(23, seed=8, longest=60)
ALPHAS = (0.01, 0.05, 0.1, 0.2, 0.5, 0.95)


def adapted(base_dir: Path, target: Any, r: int, seed: int = 2) -> Any:
    model = attach(load_base(base_dir).model, LoraSpec(r=r, target_modules=target, lora_dropout=0.3), seed=1)
    generator = torch.Generator().manual_seed(seed)
    for tensor in adapter_state(model).values():
        tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.2)
    return model


@pytest.mark.parametrize("target", [("q_proj", "k_proj", "v_proj"), "all-linear"], ids=["qkv", "all"])
@pytest.mark.parametrize("r", [3, 16])
@pytest.mark.parametrize("batch_tokens", [1, 200, 100_000], ids=["one", "some", "all-at-once"])
def test_masks_are_those_of_the_reference(base_dir: Path, target: Any, r: int, batch_tokens: int) -> None:
    model = adapted(base_dir, target, r)
    antidote = Antidote.from_pass(model, EXAMPLES, device="cpu", batch_tokens=batch_tokens)
    moments = reference.second_moments(model, EXAMPLES)
    assert antidote.norms.keys() == moments.keys()
    if batch_tokens == 1:  # the same kernels on the same shapes: then the statistic itself is the same
        assert all(torch.equal(antidote.norms[n].second_moment, moments[n]) for n in moments)
    for name, moment in moments.items():
        torch.testing.assert_close(antidote.norms[name].second_moment, moment, rtol=2e-6, atol=0)
    for alpha in ALPHAS:
        expected = reference.masks(model, moments, alpha)
        found = antidote.masks(alpha)
        assert expected.keys() == found.keys()
        assert all(np.array_equal(expected[n], found[n].numpy()) for n in expected)


def test_masks_are_those_of_the_authors_running_mean(base_dir: Path) -> None:
    model = adapted(base_dir, "all-linear", 16)
    antidote = Antidote.from_pass(model, EXAMPLES, device="cpu")
    moments = reference.second_moments(model, EXAMPLES, running_mean=True)
    for alpha in ALPHAS:
        expected = reference.masks(model, moments, alpha)
        assert all(np.array_equal(expected[n], m.numpy()) for n, m in antidote.masks(alpha).items())


def test_every_token_counts_and_padding_does_not(base_dir: Path) -> None:
    model = adapted(base_dir, ("q_proj",), 4)
    unlabelled = [Example(e.input_ids, np.full_like(e.labels, -100)) for e in EXAMPLES]
    a = input_second_moments(model, EXAMPLES, device="cpu", batch_tokens=100_000)
    b = input_second_moments(model, unlabelled, device="cpu", batch_tokens=100_000)
    assert all(torch.equal(a[n].second_moment, b[n].second_moment) for n in a)
    norm = next(iter(a.values()))
    assert (norm.num_samples, norm.num_tokens) == (23, sum(len(e) for e in EXAMPLES))


def test_apply_prunes_the_masked_entries_and_nothing_else(base_dir: Path) -> None:
    model = adapted(base_dir, "all-linear", 4)
    before = {n: t.clone() for n, t in adapter_state(model).items()}
    base_before = {n: p.clone() for n, p in model.named_parameters() if "lora" not in n}
    antidote = Antidote.from_pass(model, EXAMPLES, device="cpu")
    masks = antidote.masks(0.1)
    counts = antidote.apply(0.1)
    for name, tensor in adapter_state(model).items():
        mask = masks[name.removesuffix(".weight")]
        assert torch.equal(tensor, torch.where(mask, 0.0, before[name]))
        count = counts[name.removesuffix(".weight")]
        assert (count.rows, count.cols) == tensor.shape
        assert count.pruned == int(mask.sum()) == count.rows * count.pruned_per_row
    assert all(torch.equal(p, base_before[n]) for n, p in model.named_parameters() if "lora" not in n)


def test_strengths_start_from_the_original_and_restore_is_exact(base_dir: Path) -> None:
    model = adapted(base_dir, ("q_proj", "v_proj"), 4)
    before = {n: t.clone() for n, t in adapter_state(model).items()}
    antidote = Antidote.from_pass(model, EXAMPLES, device="cpu")
    antidote.apply(0.05)
    weak = {n: t.clone() for n, t in adapter_state(model).items()}
    antidote.apply(0.9)
    antidote.apply(0.05)
    assert all(torch.equal(t, weak[n]) for n, t in adapter_state(model).items())
    antidote.restore()
    assert all(torch.equal(t, before[n]) for n, t in adapter_state(model).items())
    with antidote.applied(0.5):
        assert not all(torch.equal(t, before[n]) for n, t in adapter_state(model).items())
    assert all(torch.equal(t, before[n]) for n, t in adapter_state(model).items())


def test_entries_that_were_zero_are_told_apart(base_dir: Path) -> None:
    model = adapted(base_dir, ("q_proj",), 4)
    for name, tensor in adapter_state(model).items():
        if "lora_B" in name:
            tensor.zero_()
    counts = Antidote.from_pass(model, EXAMPLES, device="cpu").apply(0.3)
    assert all(c.already_zero == (c.pruned if "lora_B" in n else 0) for n, c in counts.items())


def test_progress_and_cleanup(base_dir: Path) -> None:
    model = adapted(base_dir, ("q_proj",), 4)
    seen: list[Progress] = []
    input_second_moments(model, EXAMPLES, device="cpu", batch_tokens=200, on_progress=seen.append)
    assert [p.step for p in seen] == list(range(1, seen[0].total_steps + 1))
    assert all(p.stage == "sanitize" for p in seen)
    assert not any(module._forward_pre_hooks for module in model.modules())
    with pytest.raises(InputError, match="realignment set is empty"):
        input_second_moments(model, [], device="cpu")
