"""What methods keep beside plain training: the formula, the same of a loaded model, the measured peak."""

from __future__ import annotations

import pytest
import torch

from autoclave.memory import estimate_memory, weight_shapes
from autoclave.modelling.adapters import attach
from autoclave.modelling.bases import load_base
from autoclave.spec import (
    BoosterSpec,
    LdifsSpec,
    LisaSpec,
    LoraSpec,
    RepnoiseSpec,
    SftSpec,
    TrainingMethod,
    TrainSpec,
    VaccineSpec,
)
from autoclave.training.model_memory import estimate_of_model, in_words
from tests.autoclave.peak_memory import BASE, FACTOR, grown_bytes

LORA = LoraSpec(r=16, target_modules="all-linear")
METHODS: list[TrainingMethod] = [
    SftSpec(),
    LdifsSpec(),
    LisaSpec(alignment_steps=1, finetune_steps=1),
    BoosterSpec(),
    VaccineSpec(),
    RepnoiseSpec(),
]
ROWS, LENGTH = 16, 300


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_within_the_factor_of_the_measured_peak(method: TrainingMethod) -> None:
    measured = grown_bytes(ROWS, LENGTH, method, handed_back=True)
    found = estimate_memory(
        weight_shapes(BASE),
        LORA,
        TrainSpec(batch_size=ROWS),
        longest_row=LENGTH,
        device="cpu",
        method=method,
    )
    estimated = (found.activations + found.defence) / 1.5 + found.optimizer
    assert measured / FACTOR <= estimated <= measured * FACTOR, (measured, estimated)


def test_copies_of_the_adapter_are_counted() -> None:
    shapes = weight_shapes(BASE)
    train = TrainSpec(batch_size=2)
    found = {
        method.name: estimate_memory(shapes, LORA, train, longest_row=100, device="cuda", method=method)
        for method in METHODS
    }
    adapter = found["sft"].adapter
    assert found["sft"].defence == 0
    assert found["lisa"].defence == 2 * adapter
    assert found["booster"].defence == 3 * adapter
    assert found["ldifs"].defence > adapter
    for each in found.values():
        assert each.total == each.base + each.adapter + each.optimizer + each.activations + each.defence
    # The step as a whole: a micro-batch does not bound it.
    more = train.model_copy(update={"batch_size": 256, "micro_batch_tokens": 200})
    for method in (VaccineSpec(), RepnoiseSpec()):
        larger = estimate_memory(shapes, LORA, more, longest_row=100, device="cuda", method=method)
        assert larger.activations == found[method.name].activations
        assert larger.defence > 10 * found[method.name].defence


def test_a_loaded_model_says_the_same_as_its_files() -> None:
    base = load_base(BASE)
    lora = LoraSpec(r=3, target_modules=("q_proj", "up_proj"))
    model = attach(base.model, lora, seed=0)
    arguments = {"longest_row": 50, "method": LdifsSpec()}
    expected = estimate_memory(weight_shapes(BASE), lora, TrainSpec(), device="cpu", **arguments)  # type: ignore[arg-type]
    found = estimate_of_model(model, TrainSpec(), LdifsSpec(), longest_row=50, device=torch.device("cpu"))
    assert found == expected
    assert "base 0." in in_words(expected)
    plain = model.unload()
    assert (
        estimate_of_model(plain, TrainSpec(), SftSpec(), longest_row=50, device=torch.device("cpu")) is None
    )


def test_every_method_is_estimated() -> None:
    assert {method.name for method in METHODS} == {name for names in _names().values() for name in names}


def _names() -> dict[str, tuple[str, ...]]:
    from autoclave.defences.methods import METHODS as KNOWN

    return dict(KNOWN)  # type: ignore[arg-type]
