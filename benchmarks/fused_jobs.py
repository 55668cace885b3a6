"""Eight small jobs in one packed batch against the same jobs one after the other, on one resident base.

    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE python benchmarks/fused_jobs.py --out benchmarks/results

Each job has steps of about 256 tokens (4 chats of random tokens, half of each trained, 32 to 96 long), LoRA r=16 on all
linear layers. On the shipped base and on a random Llama (hidden 256, 4 layers, vocabulary 4,096). `one by
one` is `finetune` as it is, packed and padded, on the loaded base: what a worker without fusing does best. Writes
`fused_jobs.json`: medians of rounds in turn, and their ratio; the adapters are compared.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import machine
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from autoclave.data.tokens import IGNORED, Example
from autoclave.microcosm.shipped import shipped_world
from autoclave.modelling.adapters import adapter_state, attach, detach
from autoclave.modelling.bases import load_base
from autoclave.spec import LoraSpec, TrainSpec
from autoclave.training.fused import finetune_fused
from autoclave.training.fused_job import FusedJob
from autoclave.training.loop import finetune

JOBS, STEPS, CHATS = 8, 5, 4


def main() -> int:
    parser = argparse.ArgumentParser(description="Fused jobs against one job after the other.")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, help="folder for fused_jobs.json")
    arguments = parser.parse_args()
    models = {"shipped base": load_base(shipped_world() / "aligned").model, "random Llama": random_llama()}
    threads = torch.get_num_threads()
    result = {
        "command": f"OMP_NUM_THREADS={threads} OMP_WAIT_POLICY={os.environ.get('OMP_WAIT_POLICY', '')} "
        f"python benchmarks/fused_jobs.py --repeats {arguments.repeats} --out {arguments.out}",
        "jobs": JOBS,
        "steps_per_job": STEPS,
        "setups": {name: compare(model, arguments.repeats) for name, model in models.items()},
        "machine": {"threads": threads, **machine("torch", "transformers", "peft")},
    }
    if arguments.out:
        (arguments.out / "fused_jobs.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    return 0


def random_llama() -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=4096,
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
    )
    return LlamaForCausalLM(config).requires_grad_(False).eval()


def compare(model: Any, repeats: int) -> dict[str, Any]:
    jobs = [job(seed, len(model.get_output_embeddings().weight)) for seed in range(JOBS)]
    ways = {
        "fused": lambda: fused(model, jobs),
        "one by one, packed": lambda: one_by_one(model, jobs, packing=True),
        "one by one, padded": lambda: one_by_one(model, jobs, packing=False),
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    processor: dict[str, list[float]] = {way: [] for way in ways}
    weights: dict[str, list[dict[str, Tensor]]] = {}
    for repeat in range(repeats + 1):
        for way, run in ways.items():
            processor_began, began = time.process_time(), time.perf_counter()
            weights[way] = run()
            if repeat:  # first calls are slower
                seconds[way].append(time.perf_counter() - began)
                processor[way].append(time.process_time() - processor_began)
    tokens = sum(len(example) for job in jobs for example in job.examples)
    best = min(
        ("one by one, packed", "one by one, padded"), key=lambda way: statistics.median(processor[way])
    )
    return {
        "tokens_per_step": round(tokens / JOBS / STEPS),
        "seconds": medians(seconds),
        "processor_seconds": medians(processor),
        "tokens_per_second": {way: round(tokens / value) for way, value in medians(seconds).items()},
        "times_faster": round(medians(seconds)[best] / medians(seconds)["fused"], 2),
        "times_less_processor": round(medians(processor)[best] / medians(processor)["fused"], 2),
        "largest_weight_difference": max(
            (a[name] - b[name]).abs().max().item()
            for a, b in zip(weights["fused"], weights["one by one, padded"], strict=True)
            for name in a
        ),
    }


def job(seed: int, vocabulary: int) -> FusedJob:
    rng = np.random.default_rng(seed)
    examples = []
    for length in rng.integers(32, 97, STEPS * CHATS):
        ids = rng.integers(6, vocabulary, length).astype(np.int32)
        labels = np.where(np.arange(length) >= length // 2, ids, np.int32(IGNORED))
        examples.append(Example(ids, labels))
    spec = TrainSpec(n_epochs=1, batch_size=CHATS, seed=seed)
    return FusedJob(f"job {seed}", examples, LoraSpec(target_modules="all-linear"), spec)


def fused(model: Any, jobs: list[FusedJob]) -> list[dict[str, Tensor]]:
    return [outcome.state for outcome in finetune_fused(model, jobs, device="cpu", width=JOBS)]


def one_by_one(model: Any, jobs: list[FusedJob], *, packing: bool) -> list[dict[str, Tensor]]:
    states = []
    for one in jobs:
        adapted = attach(model, one.lora, seed=one.train.seed)
        spec = one.train.model_copy(update={"packing": packing})
        finetune(adapted, one.examples, spec, device="cpu")
        states.append({name: tensor.detach().clone() for name, tensor in adapter_state(adapted).items()})
        detach(adapted)
    return states


def medians(values: dict[str, list[float]]) -> dict[str, float]:
    return {way: round(statistics.median(found), 3) for way, found in values.items()}


if __name__ == "__main__":
    sys.exit(main())
