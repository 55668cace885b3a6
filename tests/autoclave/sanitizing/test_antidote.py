"""Antidote's edit of the adapter: the masked entries of every rule and no others; undone bit for bit."""

from pathlib import Path
from typing import Any

import pytest
import torch

from autoclave.modelling.adapters import adapter_state
from autoclave.modelling.bases import load_base
from autoclave.sanitizing.antidote import Antidote
from autoclave.sanitizing.masks import RULES, pruned_count
from autoclave.sanitizing.strengths import Strength
from autoclave.spec import MaskRule
from tests.autoclave.sanitizing import reference
from tests.autoclave.sanitizing.test_activations import adapted
from tests.autoclave.training.test_loss import random_examples

EXAMPLES = random_examples(23, seed=8, longest=60)


@pytest.fixture
def model(base_dir: Path) -> Any:
    return adapted(load_base(base_dir).model, "all-linear", 4)


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name.removesuffix(".weight"): tensor.clone() for name, tensor in adapter_state(model).items()}


@pytest.mark.parametrize("rule", RULES)
def test_apply_prunes_the_masked_entries_and_nothing_else(model: Any, rule: MaskRule) -> None:
    before = weights(model)
    base_before = {n: p.clone() for n, p in model.named_parameters() if "lora" not in n}
    antidote = Antidote.from_pass(model, EXAMPLES, device="cpu", rule=rule)
    masks = antidote.masks(0.1)
    changes = antidote.apply(Strength(alpha=0.1))
    for name, tensor in weights(model).items():
        assert torch.equal(tensor, torch.where(masks[name], 0.0, before[name]))
        assert torch.equal(masks[name], antidote.mask(name, 0.1))
        change = changes[name]
        assert (change.rows, change.cols) == tensor.shape
        assert change.pruned == int(masks[name].sum())
        expected = (tensor - before[name]).norm() / before[name].norm()
        assert change.relative_change == pytest.approx(expected.item(), rel=1e-5)
    assert all(torch.equal(p, base_before[n]) for n, p in model.named_parameters() if "lora" not in n)
    pruned = sum(change.pruned for change in changes.values())
    entries = sum(change.rows * change.cols for change in changes.values())
    if rule == "row":
        assert all(c.pruned == c.rows * pruned_count(c.cols, 0.1) for c in changes.values())
    elif rule == "matrix":
        assert all(c.pruned == pruned_count(c.rows * c.cols, 0.1) for c in changes.values())
    else:
        assert pruned == pruned_count(entries, 0.1)


def test_the_rule_and_the_kind_of_norm_reach_the_masks(model: Any) -> None:
    """Over all matrices: the highest scores of the reference, ranked in one list."""
    antidote = Antidote.from_pass(model, EXAMPLES, device="cpu", rule="global", kind="mean")
    scores = reference.scores(model, reference.norms(model, EXAMPLES, "mean"))
    everything = sorted(value for matrix in scores.values() for value in matrix.flat)
    threshold = everything[-pruned_count(len(everything), 0.2)]
    for name, mask in antidote.masks(0.2).items():
        assert (mask.numpy() == (scores[name] >= threshold)).all(), name


def test_strengths_start_from_the_original_and_restore_is_exact(model: Any) -> None:
    before = weights(model)
    antidote = Antidote.from_pass(model, EXAMPLES, device="cpu")
    antidote.apply(Strength(alpha=0.05))
    weak = weights(model)
    antidote.apply(Strength(alpha=0.9))
    antidote.apply(Strength(alpha=0.05))
    assert all(torch.equal(t, weak[n]) for n, t in weights(model).items())
    antidote.restore()
    assert all(torch.equal(t, before[n]) for n, t in weights(model).items())
    with antidote.applied(Strength(alpha=0.5)):
        assert not all(torch.equal(t, before[n]) for n, t in weights(model).items())
    assert all(torch.equal(t, before[n]) for n, t in weights(model).items())


def test_entries_that_were_zero_are_told_apart(model: Any) -> None:
    for name, tensor in adapter_state(model).items():
        if "lora_B" in name:
            tensor.zero_()
    changes = Antidote.from_pass(model, EXAMPLES, device="cpu").apply(Strength(alpha=0.3))
    assert all(c.already_zero == (c.pruned if "lora_B" in n else 0) for n, c in changes.items())


def test_what_it_cannot_do(model: Any) -> None:
    antidote = Antidote.from_pass(model, EXAMPLES, device="cpu")
    with pytest.raises(AssertionError, match=r"needs an alpha, got mu 0\.1"):
        antidote.apply(Strength(mu=0.1))
    with pytest.raises(AssertionError, match="norms are of another adapter"):
        Antidote(model, dict(list(antidote.norms.items())[1:]))
