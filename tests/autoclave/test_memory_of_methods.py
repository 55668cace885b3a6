"""What methods keep beside plain training: the formula, the same of a loaded model, the measured peak."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from autoclave.memory import estimate_memory, weight_shapes
from autoclave.microcosm.shipped import shipped_world
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

BASE = shipped_world() / "aligned"
LORA = LoraSpec(r=16, target_modules="all-linear")
METHODS: list[TrainingMethod] = [
    SftSpec(),
    LdifsSpec(),
    LisaSpec(alignment_steps=1, finetune_steps=1),
    BoosterSpec(),
    VaccineSpec(),
    RepnoiseSpec(),
]
FACTOR = 1.5
ROWS, LENGTH = 16, 300

# As in test_memory.py, with an objective.
MEASURE = """
import sys, threading, time
import numpy as np, psutil
from pathlib import Path
from pydantic import TypeAdapter
from autoclave.data.tokens import Example
from autoclave.defences.methods import METHODS, align_objective, finetune_objective
from autoclave.modelling.adapters import attach
from autoclave.modelling.bases import load_base
from autoclave.spec import LoraSpec, TrainingMethod, TrainSpec
from autoclave.training.loop import finetune
import autoclave.training.batches as batches

folder, rows, length = sys.argv[1], *map(int, sys.argv[2:4])
method = TypeAdapter(TrainingMethod).validate_json(sys.argv[4])
batches._PASS_OVERHEAD_TOKENS["cpu"] = 1_000_000  # as few passes as micro_batch_tokens allows

def example(length, seed):
    ids = np.random.default_rng(seed).integers(10, 600, length).astype(np.int32)
    ids[:3] = 5  # the prompt
    return Example(ids, np.where(np.arange(length) < 3, np.int32(-100), ids))

base = load_base(Path(folder))
model = attach(base.model, LoraSpec(r=16, target_modules="all-linear"), seed=0)

def train(length, count):
    examples, others = ([example(length, seed)] * count for seed in (1, 2))
    if method.name in METHODS["finetune"]:
        objective = finetune_objective(method, others)
    else:
        objective = align_objective(method, examples, others)
    finetune(model, examples, TrainSpec(n_epochs=2, batch_size=rows), device="cpu", objective=objective)

train(8, 1)
process = psutil.Process()
before = peak = process.memory_info().rss
done = False
def watch():
    global peak
    while not done:
        peak = max(peak, process.memory_info().rss)
        time.sleep(0.002)
thread = threading.Thread(target=watch)
thread.start()
train(length, rows)
done = True
thread.join()
print(peak - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_within_the_factor_of_the_measured_peak(method: TrainingMethod) -> None:
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(BASE), str(ROWS), str(LENGTH), method.model_dump_json()],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"},  # what is freed is handed back
    )
    found = estimate_memory(
        weight_shapes(BASE),
        LORA,
        TrainSpec(batch_size=ROWS),
        longest_row=LENGTH,
        device="cpu",
        method=method,
    )
    estimated = (found.activations + found.defence) / 2 + found.optimizer
    measured = int(done.stdout)
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
