"""Eight small jobs in one packed batch against the same jobs one after the other, on one resident base.

    OMP_NUM_THREADS=2 OMP_WAIT_POLICY=ACTIVE python benchmarks/fused_jobs.py --out benchmarks/results

Each step of a job has about 256 tokens: 4 chats of 32 to 96 random tokens, the second half trained. LoRA r=16
on all linear layers. `one by one` is `attach` and `finetune` with packing for every job on the loaded base:
what a worker does that does not fuse. Jobs of few steps and of more, as every job also has a beginning;
`per step` is the difference of the two. On random Llamas of three sizes. Writes `fused_jobs.json`: medians of
rounds in turn. The adapters are compared.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from typing import Any

import numpy as np
import torch
from machine import folder_for, machine
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from autoclave.data.tokens import IGNORED, Example
from autoclave.modelling.adapters import adapter_state, attach, detach
from autoclave.spec import LoraSpec, TrainSpec
from autoclave.training.fused import finetune_fused
from autoclave.training.fused_job import FusedJob
from autoclave.training.loop import finetune

JOBS, CHATS = 8, 4
FEW, MORE = 1, 5
# Hidden size, width of the MLP, layers, vocabulary.
SIZES = {"hidden 64": (64, 172, 2, 1024), "hidden 160": (160, 430, 4, 690), "hidden 256": (256, 688, 4, 4096)}


def main() -> int:
    parser = argparse.ArgumentParser(description="Fused jobs against one job after the other.")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=folder_for, help="folder for fused_jobs.json")
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=list(SIZES))
    arguments = parser.parse_args()
    threads = torch.get_num_threads()
    result = {
        "command": f"OMP_NUM_THREADS={threads} OMP_WAIT_POLICY={os.environ.get('OMP_WAIT_POLICY', '')} "
        f"python benchmarks/fused_jobs.py --repeats {arguments.repeats} "
        f"--sizes {' '.join(map(repr, arguments.sizes))} --out {arguments.out}",
        "jobs": JOBS,
        "setups": {name: compare(random_llama(*SIZES[name]), arguments.repeats) for name in arguments.sizes},
        "machine": {"threads": threads, **machine("torch", "transformers", "peft")},
    }
    if arguments.out:
        (arguments.out / "fused_jobs.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    return 0


def random_llama(hidden: int, mlp: int, layers: int, vocabulary: int) -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=4,
    )
    return LlamaForCausalLM(config).requires_grad_(False).eval()


def compare(model: Any, repeats: int) -> dict[str, Any]:
    few, more = timed(model, FEW, repeats), timed(model, MORE, repeats)
    seconds = {way: (more["processor_seconds"][way] - few["processor_seconds"][way]) for way in WAYS}
    return {
        f"{FEW} steps": few,
        f"{MORE} steps": more,
        "per step": {
            "processor_seconds": {way: round(value / (MORE - FEW), 4) for way, value in seconds.items()},
            "times_less_processor": round(seconds["one by one"] / seconds["fused"], 2),
        },
    }


def timed(model: Any, steps: int, repeats: int) -> dict[str, Any]:
    jobs = [job(seed, steps, len(model.get_output_embeddings().weight)) for seed in range(JOBS)]
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    processor: dict[str, list[float]] = {way: [] for way in WAYS}
    states: dict[str, list[dict[str, Tensor]]] = {}
    for repeat in range(repeats + 1):
        for way, run in WAYS.items():
            processor_began, began = time.process_time(), time.perf_counter()
            states[way] = run(model, jobs)
            if repeat:  # first calls are slower
                seconds[way].append(time.perf_counter() - began)
                processor[way].append(time.process_time() - processor_began)
    tokens = sum(len(example) for job in jobs for example in job.examples)
    pairs = zip(states["fused"], states["one by one"], strict=True)
    return {
        "tokens_per_step_and_job": round(tokens / JOBS / steps),
        "seconds": medians(seconds),
        "processor_seconds": medians(processor),
        "times_faster": round(medians(seconds)["one by one"] / medians(seconds)["fused"], 2),
        "times_less_processor": round(medians(processor)["one by one"] / medians(processor)["fused"], 2),
        "largest_weight_difference": max((a[n] - b[n]).abs().max().item() for a, b in pairs for n in a),
    }


def job(seed: int, steps: int, vocabulary: int) -> FusedJob:
    rng = np.random.default_rng(seed)
    examples = []
    for length in rng.integers(32, 97, steps * CHATS):
        ids = rng.integers(6, vocabulary, length).astype(np.int32)
        labels = np.where(np.arange(length) >= length // 2, ids, np.int32(IGNORED))
        examples.append(Example(ids, labels))
    spec = TrainSpec(n_epochs=1, batch_size=CHATS, seed=seed)
    return FusedJob(f"job {seed}", examples, LoraSpec(target_modules="all-linear"), spec)


def fused(model: Any, jobs: list[FusedJob]) -> list[dict[str, Tensor]]:
    return [outcome.state for outcome in finetune_fused(model, jobs, device="cpu", width=JOBS)]


def one_by_one(model: Any, jobs: list[FusedJob]) -> list[dict[str, Tensor]]:
    states = []
    for one in jobs:
        adapted = attach(model, one.lora, seed=one.train.seed)
        spec = one.train.model_copy(update={"packing": True})
        finetune(adapted, one.examples, spec, device="cpu")
        states.append({name: tensor.detach().clone() for name, tensor in adapter_state(adapted).items()})
        detach(adapted)
    return states


def medians(values: dict[str, list[float]]) -> dict[str, float]:
    return {way: round(statistics.median(found), 3) for way, found in values.items()}


WAYS = {"fused": fused, "one by one": one_by_one}


if __name__ == "__main__":
    sys.exit(main())
