"""Training with decoder blocks that are computed again in the backward pass, against keeping what they gave.

    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE python benchmarks/activation_checkpointing.py \\
        --out benchmarks/results

A random Llama (hidden 256, 8 layers, vocabulary 4,096, float32), LoRA of rank 16 on all linear layers, steps
of 8 rows of 256 tokens in one packed pass. `kept` is `activation_checkpointing: off`, `again` is `on`. Each
runs in a process of its own: how far resident memory rises while it trains over what it was when the
libraries had trained a little, with an allocator that hands back what is freed, beside what the estimate
says of it; and the processor time of a step, the median. Losses must be equal bit for bit. Writes
`activation_checkpointing.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from typing import Any

import numpy as np
import torch
from machine import folder_for, machine
from transformers import LlamaConfig, LlamaForCausalLM

from autoclave.data.tokens import Example
from autoclave.modelling.adapters import attach
from autoclave.progress import Progress
from autoclave.spec import LoraSpec, SftSpec, TrainSpec
from autoclave.training.loop import finetune
from autoclave.training.model_memory import estimate_of_model

HIDDEN, LAYERS, VOCABULARY, ROWS, LENGTH = 256, 8, 4096, 8, 256
WAYS = {"kept": "off", "again": "on"}


def main() -> int:
    parser = argparse.ArgumentParser(description="Activation checkpointing against none.")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=2, help="processes per way, in turn")
    parser.add_argument("--out", type=folder_for, help="folder for activation_checkpointing.json")
    parser.add_argument("--measure", choices=list(WAYS), help="one measurement, in this process")
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measured(arguments.measure, arguments.steps)))
        return 0
    folder = arguments.out
    runs: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for _ in range(arguments.rounds):
        for way, found in runs.items():
            found.append(in_a_process(way, arguments.steps))
    first = runs["kept"][0]["losses"]
    assert all(run["losses"] == first for found in runs.values() for run in found), "other losses"
    ways = {
        way: {
            "grown_mib": statistics.median(run["grown_mib"] for run in found),
            "estimated_mib": found[0]["estimated_mib"],
            "processor_seconds_per_step": statistics.median(run["seconds"] for run in found),
        }
        for way, found in runs.items()
    }
    kept, again = ways["kept"], ways["again"]
    result = {
        "command": "OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE python benchmarks/activation_checkpointing.py "
        f"--steps {arguments.steps} --rounds {arguments.rounds} --out {arguments.out}",
        "model": {"hidden": HIDDEN, "layers": LAYERS, "vocabulary": VOCABULARY},
        "tokens_per_step": ROWS * LENGTH,
        "ways": ways,
        "times_less_memory": round(kept["grown_mib"] / again["grown_mib"], 2),
        "times_the_processor_time": round(
            again["processor_seconds_per_step"] / kept["processor_seconds_per_step"], 2
        ),
        "machine": {"threads": torch.get_num_threads(), **machine("torch", "transformers", "peft", "psutil")},
    }
    if folder:
        (folder / "activation_checkpointing.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    return 0


def in_a_process(way: str, steps: int) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, __file__, "--measure", way, "--steps", str(steps)],
        check=True,
        stdout=subprocess.PIPE,
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"},  # what is freed is handed back
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def measured(way: str, steps: int) -> dict[str, Any]:
    import threading

    import psutil

    model = new_model()
    spec = TrainSpec(n_epochs=1, batch_size=ROWS, packing=True, activation_checkpointing=WAYS[way])
    finetune(model, examples(2, 8), spec, device="cpu")  # what libraries allocate at their first call
    process, done = psutil.Process(), threading.Event()
    before = peak = process.memory_info().rss

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.002):
            peak = max(peak, process.memory_info().rss)

    watching = threading.Thread(target=watch)
    watching.start()
    seconds: list[float] = []
    began = time.process_time()

    def on_progress(_: Progress) -> None:
        nonlocal began
        seconds.append(time.process_time() - began)
        began = time.process_time()

    result = finetune(model, examples(ROWS * steps, LENGTH), spec, device="cpu", on_progress=on_progress)
    done.set()
    watching.join()
    estimate = estimate_of_model(
        model, spec, SftSpec(), longest_row=LENGTH, device=torch.device("cpu"), checkpointing=way == "again"
    )
    assert estimate is not None
    # Half of the activations: what an allocator keeps that hands nothing back is in the estimate.
    expected = estimate.activations / 2 + estimate.optimizer
    return {
        "losses": result.losses,
        "seconds": statistics.median(seconds[1:]),
        "grown_mib": round((peak - before) / 2**20, 1),
        "estimated_mib": round(expected / 2**20, 1),
    }


def new_model() -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=HIDDEN * 11 // 4,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
    )
    model = LlamaForCausalLM(config).requires_grad_(False)
    return attach(model, LoraSpec(r=16, target_modules="all-linear"), seed=0)


def examples(count: int, length: int) -> list[Example]:
    rng = np.random.default_rng(0)
    drawn = [rng.integers(5, VOCABULARY, length).astype(np.int32) for _ in range(count)]
    return [Example(ids, ids) for ids in drawn]


if __name__ == "__main__":
    raise SystemExit(main())
