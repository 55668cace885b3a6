"""Packed training against padded training, in turn, in one process: time of the same steps.

    OMP_NUM_THREADS=2 OMP_WAIT_POLICY=PASSIVE python benchmarks/packing.py --out benchmarks/results

Synthetic chats of random tokens, the second half of each an answer. Lengths are log-normal (skewed, as chats
are: most short, a few long) or all equal, where there is no padding to save. On the shipped aligned base and
on a random Llama that is larger; every linear layer adapted, 16 chats a step. Writes
`packing.json`: medians, and padded time over packed. Losses are compared: the steps must be the same. Only
ratios mean anything elsewhere; processor time is there because other programs do not change it.
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
from transformers import LlamaConfig, LlamaForCausalLM

from autoclave.data.tokens import IGNORED, Example
from autoclave.microcosm.shipped import shipped_world
from autoclave.modelling.adapters import attach, detach
from autoclave.modelling.bases import load_base
from autoclave.spec import LoraSpec, TrainSpec
from autoclave.training.loop import TrainResult, finetune

VOCABULARY = 600
LONGEST = 512


def main() -> int:
    parser = argparse.ArgumentParser(description="Packed against padded training.")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=folder_for, required=True, help="folder for packing.json")
    arguments = parser.parse_args()
    models = {"shipped base": (shipped_base(), 128), "random Llama": (random_llama(), 32)}
    datasets = {"skewed": skewed, "equal": equal}
    setups = {
        f"{name}, {lengths} lengths": compare(model, make(number), arguments.repeats)
        for name, (model, number) in models.items()
        for lengths, make in datasets.items()
    }
    result = {
        "command": f"OMP_NUM_THREADS={torch.get_num_threads()} OMP_WAIT_POLICY="
        f"{os.environ.get('OMP_WAIT_POLICY', '')} python benchmarks/packing.py --repeats "
        f"{arguments.repeats} --out {arguments.out}",
        "setups": setups,
        "machine": {"threads": torch.get_num_threads(), **machine("torch", "transformers", "peft")},
    }
    (arguments.out / "packing.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    return 0


def shipped_base() -> Any:
    return load_base(shipped_world() / "aligned").model


def random_llama() -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=512,
        intermediate_size=1408,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=LONGEST,
    )
    return LlamaForCausalLM(config).requires_grad_(False)


def skewed(number: int) -> list[Example]:
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(mean=4.0, sigma=1.0, size=number), 8, LONGEST)
    return [chat(rng, int(length)) for length in lengths]


def equal(number: int) -> list[Example]:
    rng = np.random.default_rng(0)
    return [chat(rng, 90) for _ in range(number)]  # the mean of the skewed ones


def chat(rng: np.random.Generator, length: int) -> Example:
    ids = rng.integers(6, VOCABULARY, length).astype(np.int32)
    return Example(ids, np.where(np.arange(length) >= length // 2, ids, np.int32(IGNORED)))


def compare(model: Any, examples: list[Example], repeats: int) -> dict[str, Any]:
    lengths = [len(example) for example in examples]
    ways = {"padded": False, "packed": True}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    processor: dict[str, list[float]] = {way: [] for way in ways}
    losses: dict[str, list[float]] = {}
    for packing in ways.values():
        train(model, examples[:16], packing=packing)  # first calls are slower
    for _ in range(repeats):
        for way, packing in ways.items():
            processor_began, began = time.process_time(), time.perf_counter()
            losses[way] = train(model, examples, packing=packing).losses
            seconds[way].append(time.perf_counter() - began)
            processor[way].append(time.process_time() - processor_began)
    assert np.allclose(losses["padded"], losses["packed"], rtol=1e-4), losses
    return {
        "chats": len(examples),
        "tokens": sum(lengths),
        "median_length": statistics.median(lengths),
        "longest": max(lengths),
        "seconds": rounded(seconds),
        "processor_seconds": rounded(processor),
        "times_faster": ratio(seconds),
        "times_less_processor": ratio(processor),
        "largest_loss_difference": max(
            abs(a - b) for a, b in zip(losses["padded"], losses["packed"], strict=True)
        ),
    }


def train(model: Any, examples: list[Example], *, packing: bool) -> TrainResult:
    adapted = attach(model, LoraSpec(target_modules="all-linear"), seed=0)
    spec = TrainSpec(n_epochs=1, batch_size=16, packing=packing)
    result = finetune(adapted, examples, spec, device="cpu")
    detach(adapted)
    return result


def rounded(values: dict[str, list[float]]) -> dict[str, float]:
    return {way: round(statistics.median(found), 3) for way, found in values.items()}


def ratio(values: dict[str, list[float]]) -> float:
    return round(statistics.median(values["padded"]) / statistics.median(values["packed"]), 2)


if __name__ == "__main__":
    sys.exit(main())
