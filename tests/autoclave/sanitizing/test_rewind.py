"""Rewinding to the aligned adapter, entry by entry against plain Python."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from autoclave.errors import UnsupportedAdapterError
from autoclave.modelling.bases import load_base
from autoclave.sanitizing.activations import input_norms
from autoclave.sanitizing.antidote import Antidote
from autoclave.sanitizing.masks import pruned_count
from autoclave.sanitizing.rewind import RewindingAntidote
from autoclave.sanitizing.strengths import Strength
from tests.autoclave.sanitizing import reference
from tests.autoclave.sanitizing.test_activations import adapted
from tests.autoclave.sanitizing.test_antidote import weights
from tests.autoclave.training.test_loss import random_examples

EXAMPLES = random_examples(9, seed=8)


@pytest.fixture
def model(base_dir: Path) -> Any:
    return adapted(load_base(base_dir).model, "all-linear", 4)


def aligned_of(finetuned: dict[str, Tensor]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {n: t + 0.1 * torch.randn(t.shape, generator=generator) for n, t in finetuned.items()}


def test_equal_to_entries_chosen_one_by_one(model: Any) -> None:
    finetuned = weights(model)
    aligned = aligned_of(finetuned)
    norms = reference.norms(model, EXAMPLES, "rms")
    measured = input_norms(model, EXAMPLES, device="cpu")
    sanitizer = RewindingAntidote(model, measured, aligned)
    changes = sanitizer.apply(Strength(alpha=0.3))
    for name, after in weights(model).items():
        num_rewound = 0
        for row in range(after.shape[0]):
            changed = [
                abs(float(finetuned[name][row, column] - aligned[name][row, column]))
                * float(norms[name][column])
                for column in range(after.shape[1])
            ]
            order = sorted(range(len(changed)), key=lambda column: changed[column], reverse=True)
            rewound = set(order[: pruned_count(len(order), 0.3)])
            num_rewound += len(rewound)
            for column in range(after.shape[1]):
                source = aligned if column in rewound else finetuned
                assert after[row, column] == source[name][row, column], (name, row, column)
        assert changes[name].pruned == num_rewound
    sanitizer.restore()
    assert all(torch.equal(tensor, finetuned[name]) for name, tensor in weights(model).items())


def test_from_nothing_it_is_antidote_and_at_the_end_it_is_the_aligned_adapter(model: Any) -> None:
    measured = input_norms(model, EXAMPLES, device="cpu")
    nothing = {name: torch.zeros_like(tensor) for name, tensor in weights(model).items()}
    expected = Antidote(model, measured).edit(Strength(alpha=0.2))
    found = RewindingAntidote(model, measured, nothing).edit(Strength(alpha=0.2))
    assert all(torch.equal(found.weights[name], expected.weights[name]) for name in expected.weights)
    aligned = aligned_of(weights(model))
    RewindingAntidote(model, measured, aligned).apply(Strength(alpha=0.9999))
    assert all(torch.equal(tensor, aligned[name]) for name, tensor in weights(model).items())


def test_another_adapter_is_refused(model: Any) -> None:
    measured = input_norms(model, EXAMPLES, device="cpu")
    aligned = aligned_of(weights(model))
    name = next(iter(aligned))
    with pytest.raises(UnsupportedAdapterError, match="the one that was trained on"):
        RewindingAntidote(model, measured, {**aligned, name: aligned[name][:-1]})
    with pytest.raises(UnsupportedAdapterError, match="None before it"):
        RewindingAntidote(model, measured, {n: t for n, t in aligned.items() if n != name})
