"""The controls prune as much as Antidote, elsewhere, and give the adapter back."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from autoclave.modelling.adapters import adapter_state
from autoclave.modelling.bases import load_base
from autoclave.sanitizing.masks import RULES, pruned_count
from autoclave.sanitizing.random_control import by_magnitude, randomly_pruned
from autoclave.spec import MaskRule
from tests.autoclave.sanitizing.test_activations import adapted


@pytest.fixture
def model(base_dir: Path) -> Any:
    return adapted(load_base(base_dir).model, ("q_proj", "v_proj"), 8)


@contextmanager
def whole_again(model: Any) -> Iterator[None]:
    before = {name: tensor.clone() for name, tensor in adapter_state(model).items()}
    yield
    assert all(torch.equal(tensor, before[name]) for name, tensor in adapter_state(model).items())


def zeros(model: Any) -> dict[str, torch.Tensor]:
    return {name: tensor == 0 for name, tensor in adapter_state(model).items()}


@pytest.mark.parametrize("rule", RULES)
def test_chance_prunes_as_much_and_the_seed_decides(model: Any, rule: MaskRule) -> None:
    masks = []
    for seed in (1, 1, 2):
        with whole_again(model), randomly_pruned(model, 0.2, seed=seed, rule=rule):
            masks.append(zeros(model))
    for name, mask in masks[0].items():
        if rule == "row":
            assert (mask.sum(dim=1) == pruned_count(mask.shape[1], 0.2)).all(), name
        elif rule == "matrix":
            assert mask.sum() == pruned_count(mask.numel(), 0.2), name
        assert torch.equal(mask, masks[1][name])
    entries = sum(mask.numel() for mask in masks[0].values())
    if rule == "global":
        assert sum(int(mask.sum()) for mask in masks[0].values()) == pruned_count(entries, 0.2)
    assert any(not torch.equal(mask, masks[2][name]) for name, mask in masks[0].items())


def test_magnitude_prunes_the_largest_weights(model: Any) -> None:
    before = {name: tensor.clone().abs() for name, tensor in adapter_state(model).items()}
    with whole_again(model), by_magnitude(model, 0.2):
        for name, mask in zeros(model).items():
            assert (mask.sum(dim=1) == pruned_count(mask.shape[1], 0.2)).all(), name
            smallest_pruned = before[name].masked_fill(~mask, torch.inf).amin(dim=1)
            assert (before[name].masked_fill(mask, 0).amax(dim=1) <= smallest_pruned).all(), name


@pytest.mark.parametrize(
    "control", [lambda m: randomly_pruned(m, 0.2, seed=1), lambda m: by_magnitude(m, 0.2)]
)
def test_whole_again_after_an_error(model: Any, control: Any) -> None:
    with whole_again(model), pytest.raises(KeyError), control(model):
        raise KeyError
