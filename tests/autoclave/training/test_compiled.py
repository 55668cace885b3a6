"""Compiled decoder blocks: the same training, and the model is as it was afterwards."""

from typing import Any

import numpy as np
import pytest
import torch

from autoclave.data.tokens import Example
from autoclave.errors import InputError
from autoclave.modelling.adapters import adapter_state, attach
from autoclave.modelling.compiled_blocks import compiled_blocks, refuse_compiling_on
from autoclave.spec import LoraSpec, TrainSpec
from autoclave.training.loop import finetune
from tests.autoclave.tiny_architectures import tiny_model


def random_examples(lengths: list[int]) -> list[Example]:
    rng = np.random.default_rng(0)
    drawn = [rng.integers(6, 262, length).astype(np.int32) for length in lengths]
    return [Example(ids, ids) for ids in drawn]


@pytest.mark.slow  # importing the compiler takes seconds
# What the compiler itself does.
@pytest.mark.filterwarnings("ignore:The .grad attribute")
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_the_losses_are_the_same() -> None:
    examples = random_examples([9, 14, 5, 20, 11, 8, 17, 6])
    losses, states = [], []
    for backend in (None, "aot_eager"):
        model = attach(tiny_model("llama"), LoraSpec(r=4, target_modules="all-linear"), seed=1)
        spec = TrainSpec(n_epochs=2, batch_size=4, packing=True, learning_rate=1e-2)
        result = finetune(
            model,
            examples,
            spec,
            device="cpu",
            compile_backend=backend,
        )
        losses.append(result.losses)
        states.append({name: tensor.clone() for name, tensor in adapter_state(model).items()})
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)
    for name, tensor in states[0].items():
        torch.testing.assert_close(states[1][name], tensor, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_layers_are_compiled_inside_and_plain_after() -> None:
    model: Any = tiny_model("llama")
    seen: list[int] = []

    def backend(graph: Any, _inputs: Any) -> Any:
        seen.append(1)
        return graph.forward

    ids = torch.arange(12)[None]
    with torch.no_grad():
        plain = model(input_ids=ids).logits
        with compiled_blocks(model, backend) as count:  # type: ignore[arg-type]
            torch.testing.assert_close(model(input_ids=ids).logits, plain)
            first = len(seen)
        assert count == 2
        assert first > 0
        model(input_ids=ids)
    assert len(seen) == first
    assert not any("forward" in vars(layer) for layer in model.model.layers)


def test_it_is_refused_on_a_cpu() -> None:
    with pytest.raises(InputError, match="--compile is for CUDA"):
        refuse_compiling_on("cpu")
