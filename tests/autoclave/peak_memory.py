"""How much memory training really takes: in a process of its own, on the shipped base."""

from __future__ import annotations

import os
import subprocess
import sys

from autoclave.microcosm.shipped import shipped_world
from autoclave.spec import ActivationCheckpointing, TrainingMethod

BASE = shipped_world() / "aligned"
FACTOR = 1.5
"""Between what is measured and what is estimated."""

# How far resident memory rises over what it is once the libraries are loaded and have trained a little.
_MEASURE = """
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
    spec = TrainSpec(n_epochs=2, batch_size=rows, activation_checkpointing=sys.argv[5])
    finetune(model, examples, spec, device="cpu", objective=objective)

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


def grown_bytes(
    rows: int,
    length: int,
    method: TrainingMethod,
    *,
    handed_back: bool,
    checkpointing: ActivationCheckpointing = "off",
) -> int:
    """Of `rows` examples of `length` tokens to a step, rank 16 on all linear layers. `handed_back`: what
    is freed is given to the system at once, and not kept by the allocator."""
    arguments = [str(BASE), str(rows), str(length), method.model_dump_json(), checkpointing]
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, *arguments],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **({"MALLOC_MMAP_THRESHOLD_": "65536"} if handed_back else {})},
    )
    return int(done.stdout)
