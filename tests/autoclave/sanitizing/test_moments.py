"""Streamed second moments against one example at a time."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from autoclave.sanitizing.moments import AdaptedInput, adapted_inputs, in_groups, lora_modules, second_moments
from tests.autoclave.sanitizing.adapted import HARMFUL, adapted


def one_by_one(model: Any, name: str) -> Tensor:
    """The moments of one input, an example at a time, from the definition."""
    caught: list[Tensor] = []
    handle = lora_modules(model)[name].register_forward_pre_hook(lambda _, x: caught.append(x[0][0].double()))
    with torch.no_grad():
        for example in HARMFUL:
            model(input_ids=torch.tensor(example.input_ids[None], dtype=torch.int64))
    handle.remove()
    tokens = torch.cat(caught)  # (N, d)
    total = torch.stack([torch.outer(x, x) for x in tokens]).sum(dim=0)
    return total / total.trace()


def test_layers_that_read_the_same_tensor_are_found(base_dir: Path) -> None:
    model = adapted(base_dir)
    groups = [
        [name.split(".")[-2] for name in item.lora_a_names] for item in adapted_inputs(model, device="cpu")
    ]
    block = [["q_proj", "k_proj", "v_proj"], ["o_proj"], ["gate_proj", "up_proj"], ["down_proj"]]
    assert groups == block * 2


def test_widths_are_those_of_the_layers(base_dir: Path) -> None:
    model = adapted(base_dir)
    for item in adapted_inputs(model, device="cpu"):
        for name in item.lora_a_names:
            assert model.get_submodule(f"{name}.default").in_features == item.num_features


@pytest.mark.parametrize("batch_tokens", [1, 300, 100_000])
def test_moments_are_those_of_single_examples(base_dir: Path, batch_tokens: int) -> None:
    model = adapted(base_dir)
    inputs = adapted_inputs(model, device="cpu")
    found = second_moments(model, HARMFUL, inputs, device="cpu", batch_tokens=batch_tokens)
    assert list(found) == [item.name for item in inputs]
    for name, moment in found.items():
        torch.testing.assert_close(moment, one_by_one(model, name), rtol=0, atol=2e-6)
        assert moment.trace().item() == pytest.approx(1)


def test_every_hook_is_taken_off(base_dir: Path) -> None:
    model = adapted(base_dir)
    second_moments(model, HARMFUL, adapted_inputs(model, device="cpu"), device="cpu")
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("max_bytes", "lengths"),
    [(10**9, [3]), (2 * 8 * (16 + 64), [2, 1]), (0, [1, 1, 1])],
)
def test_groups_fit_or_hold_one_input(max_bytes: int, lengths: list[int]) -> None:
    inputs = [AdaptedInput((name,), width) for name, width in (("a", 4), ("b", 8), ("c", 100))]
    groups = in_groups(inputs, max_bytes, copies=2)
    assert [len(group) for group in groups] == lengths
    assert [item for group in groups for item in group] == inputs
