"""What the user's data needs is spared, by either definition and under every rule."""

import itertools
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch

from autoclave.sanitizing.activations import ActivationNorm, input_norms
from autoclave.sanitizing.antidote import Antidote
from autoclave.sanitizing.masks import pruned_count, select
from autoclave.sanitizing.protected import ProtectedAntidote
from autoclave.sanitizing.strengths import Strength
from autoclave.sanitizing.wanda import wanda_scores
from autoclave.spec import MaskRule
from tests.autoclave.sanitizing.adapted import HARMFUL, USER, adapted

Protection = Literal["set-difference", "normalised-difference"]
RULES: tuple[MaskRule, ...] = ("row", "matrix", "global")
Norms = dict[str, ActivationNorm]


@pytest.fixture(scope="module")
def case(base_dir: Path) -> tuple[Any, Norms, Norms]:
    """The model, its norms on harmful examples and those on the user's."""
    model = adapted(base_dir)
    harmful, user = (input_norms(model, examples, device="cpu") for examples in (HARMFUL, USER))
    return model, harmful, user


def scores(sanitizer: ProtectedAntidote, norms: Norms) -> dict[str, torch.Tensor]:
    return {name: wanda_scores(weight, norms[name].norm) for name, weight in sanitizer.originals.items()}


@pytest.mark.parametrize("rule", RULES)
def test_protected_entries_are_never_pruned(case: Any, rule: MaskRule) -> None:
    model, harmful, user = case
    sanitizer = ProtectedAntidote(
        model, harmful, user, rule=rule, protection="set-difference", protected_fraction=0.3
    )
    protected = select(scores(sanitizer, user), 0.3, rule)
    antidote = Antidote(model, harmful, rule=rule).masks(0.9)
    assert any((antidote[name] & mask).any() for name, mask in protected.items()), "nothing to protect"
    for alpha in (0.1, 0.9):
        masks = sanitizer.edit(Strength(alpha=alpha)).masks
        assert any(mask.any() for mask in masks.values())
        for name, mask in masks.items():
            assert not (mask & protected[name]).any(), (name, alpha)


@pytest.mark.parametrize("rule", RULES)
def test_the_highest_harmful_scores_that_are_not_protected_go(case: Any, rule: MaskRule) -> None:
    model, harmful, user = case
    sanitizer = ProtectedAntidote(
        model, harmful, user, rule=rule, protection="set-difference", protected_fraction=0.2
    )
    free = {name: ~mask for name, mask in select(scores(sanitizer, user), 0.2, rule).items()}
    on_harmful = scores(sanitizer, harmful)
    masks = sanitizer.edit(Strength(alpha=0.1)).masks
    if rule == "global":
        masks, free, on_harmful = (
            {"all": torch.cat([t.reshape(-1) for t in tensors.values()])[None]}
            for tensors in (masks, free, on_harmful)
        )
    for name, mask in masks.items():
        rows = [slice(i, i + 1) for i in range(len(mask))] if rule == "row" else [slice(None)]
        for row in rows:
            pruned, kept = mask[row], free[name][row] & ~mask[row]
            available = int(free[name][row].sum())
            assert pruned.sum() == min(pruned_count(mask[row].numel(), 0.1), available), name
            if pruned.any() and kept.any():
                assert on_harmful[name][row][pruned].min() >= on_harmful[name][row][kept].max(), name


@pytest.mark.parametrize("rule", ["row", "matrix"])
def test_the_difference_is_of_scores_over_their_means(case: Any, rule: MaskRule) -> None:
    model, harmful, user = case
    sanitizer = ProtectedAntidote(model, harmful, user, rule=rule)
    masks = sanitizer.edit(Strength(alpha=0.25)).masks
    for name, mask in masks.items():
        h, u = (scores(sanitizer, norms)[name].double().numpy() for norms in (harmful, user))
        axis = {"axis": 1, "keepdims": True} if rule == "row" else {}
        difference = h / h.mean(**axis) - u / u.mean(**axis)
        for row, values in zip(
            mask.numpy() if rule == "row" else mask.numpy().reshape(1, -1),
            difference if rule == "row" else difference.reshape(1, -1),
            strict=True,
        ):
            assert row.sum() == pruned_count(row.size, 0.25)
            # float32 rounding may decide near-ties.
            assert row.all() or values[row].min() >= values[~row].max() - 1e-5 * np.abs(values).max()


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("protection", ["set-difference", "normalised-difference"])
def test_masks_are_nested(case: Any, rule: MaskRule, protection: Protection) -> None:
    model, harmful, user = case
    sanitizer = ProtectedAntidote(model, harmful, user, rule=rule, protection=protection)
    masks = [sanitizer.edit(Strength(alpha=alpha)).masks for alpha in (0.02, 0.1, 0.3)]
    for smaller, larger in itertools.pairwise(masks):
        assert all(not (smaller[name] & ~larger[name]).any() for name in smaller)


@pytest.mark.parametrize("protection", ["set-difference", "normalised-difference"])
def test_an_adapter_with_zero_factors_gets_a_mask_all_the_same(
    base_dir: Path, protection: Protection
) -> None:
    model = adapted(base_dir, ("q_proj",))
    for name, parameter in model.named_parameters():
        if "layers.0" in name and "lora_B" in name:
            parameter.data.zero_()  # its scores, and their mean, are zero
    harmful, user = (input_norms(model, examples, device="cpu") for examples in (HARMFUL, USER))
    sanitizer = ProtectedAntidote(model, harmful, user, protection=protection)
    masks = sanitizer.edit(Strength(alpha=0.3)).masks
    assert all(mask.any() for name, mask in masks.items() if "lora_A" in name)


def test_it_keeps_the_norms_of_the_harmful_examples(case: Any) -> None:
    model, harmful, user = case
    assert ProtectedAntidote(model, harmful, user).norms is harmful
