"""Training on a CPU with the heap kept from step to step, against malloc left to itself.

    OMP_NUM_THREADS=2 OMP_WAIT_POLICY=ACTIVE python benchmarks/heap.py --out benchmarks/results

A random Llama (hidden 256, 4 layers, vocabulary 4,096), LoRA r=16 on all linear layers, 16 chats of 32 to 256
random tokens a step, packed, the second half trained. Both in turn, each run in a process of its own. Page
faults are the process's own during the run (getrusage), memory its peak. Writes `heap.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from machine import folder_for, machine
from transformers import LlamaConfig, LlamaForCausalLM

from autoclave.data.tokens import IGNORED, Example
from autoclave.modelling.adapters import attach
from autoclave.spec import LoraSpec, TrainSpec
from autoclave.training import loop

WAYS = ("kept", "left to itself")


def main() -> int:
    parser = argparse.ArgumentParser(description="Training with and without the heap kept.")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=folder_for, help="folder for heap.json")
    arguments = parser.parse_args()
    found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for _ in range(arguments.rounds):
        for way in WAYS:
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                found[way].append(pool.submit(run, way == "kept", arguments.steps).result())
    medians = {
        way: {name: statistics.median(one[name] for one in all_) for name in all_[0]}
        for way, all_ in found.items()
    }
    kept, left = (medians[way] for way in WAYS)
    threads = torch.get_num_threads()
    result: dict[str, Any] = {
        "command": f"OMP_NUM_THREADS={threads} OMP_WAIT_POLICY={os.environ.get('OMP_WAIT_POLICY', '')} "
        f"python benchmarks/heap.py --steps {arguments.steps} --rounds {arguments.rounds} "
        f"--out {arguments.out}",
        "medians": medians,
        "times_faster": round(left["seconds"] / kept["seconds"], 2),
        "peak_memory_ratio": round(kept["peak_mib"] / left["peak_mib"], 2),
        "machine": {"threads": threads, **machine("torch", "transformers", "peft")},
    }
    if arguments.out:
        (Path(arguments.out) / "heap.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    return 0


def run(is_kept: bool, steps: int) -> dict[str, float]:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=4096,
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
    )
    model = attach(
        LlamaForCausalLM(config).requires_grad_(False), LoraSpec(target_modules="all-linear"), seed=0
    )
    before = resource.getrusage(resource.RUSAGE_SELF)
    with nullcontext() if is_kept else mock.patch.object(loop, "kept_heap", nullcontext):
        began = time.perf_counter()
        loop.finetune(
            model, examples(16 * steps), TrainSpec(n_epochs=1, batch_size=16, packing=True), device="cpu"
        )
        seconds = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "seconds": round(seconds, 3),
        "system_seconds": round(after.ru_stime - before.ru_stime, 3),
        "page_faults": after.ru_minflt - before.ru_minflt,
        "peak_mib": round(after.ru_maxrss / 1024),
    }


def examples(count: int) -> list[Example]:
    generator = np.random.default_rng(0)
    found = []
    for length in generator.integers(32, 257, count):
        ids = generator.integers(3, 4096, length)
        labels = np.where(np.arange(length) < length // 2, IGNORED, ids)
        found.append(Example(ids.astype(np.int32), labels.astype(np.int32)))
    return found


if __name__ == "__main__":
    sys.exit(main())
