"""Answers in length-sorted static batches against one prompt at a time, in turn, in one process, on a CPU.

    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE python benchmarks/generation.py --out benchmarks/results

300 prompts of the shipped world (harmful, helpful, task) on its aligned base with a random adapter on every
linear layer, at most 16 tokens an answer. The ways:

    alone          transformers' generate(), a prompt at a time, the adapter hot: the loop that people write
    own loop       our decoding with batches of one, the adapter hot as PEFT computes it
    static         `generation.StaticBatches`: what jobs use, the adapter hot in one operation
    static, PEFT   the same, the adapter as PEFT computes it
    merged         the same, the adapter merged
    continuous     `generation.ContinuousBatches`, the adapter hot in one operation, without flash attention

A round takes about half a minute of an idle core; the quick ways run three times in each. Writes
`generation.json`: medians of wall and processor time, and time of each over that of static. All must give
the same tokens. Only ratios mean anything elsewhere.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any
from unittest import mock

import torch
from machine import folder_for, machine

from autoclave.data.templates import prompt_text
from autoclave.evaluation import generate
from autoclave.evaluation.generate import end_of_sequence_ids, generate_ids
from autoclave.evaluation.harmfulness import read_prompts
from autoclave.generation.continuous_batches import continuous_ids
from autoclave.microcosm.shipped import shipped_world
from autoclave.modelling.adapters import adapter_state, attach
from autoclave.modelling.bases import load_base
from autoclave.spec import LoraSpec

NUM_PROMPTS = 300
BATCH_TOKENS = 16384
SLOW = ("alone", "own loop")
Answers = list[list[int]]


def main() -> int:
    parser = argparse.ArgumentParser(description="Static batches against one prompt at a time.")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=folder_for, required=True, help="folder for generation.json")
    arguments = parser.parse_args()
    command = (
        f"OMP_NUM_THREADS={torch.get_num_threads()} OMP_WAIT_POLICY={os.environ.get('OMP_WAIT_POLICY', '')} "
        f"python benchmarks/generation.py --repeats {arguments.repeats} --out {arguments.out}"
    )
    for found in rounds(*shipped(), arguments.repeats):  # written after every round: a round takes a while
        result = {
            "command": command,
            "shipped base": found,
            "machine": {"threads": torch.get_num_threads(), **machine("torch", "transformers", "peft")},
        }
        (arguments.out / "generation.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    return 0


def shipped() -> tuple[Any, Answers, frozenset[int], int]:
    data = shipped_world() / "data"
    base = load_base(shipped_world() / "aligned")
    files = ("harmful_eval.jsonl", "helpful_eval.jsonl", "utility_eval.jsonl")
    prompts = [prompt for file in files for prompt in read_prompts(data / file, max_prompts=NUM_PROMPTS // 3)]
    texts = [prompt_text(base.tokenizer, prompt) for prompt in prompts]
    ids = base.tokenizer(texts, add_special_tokens=False)["input_ids"]
    return adapted(base.model), ids, end_of_sequence_ids(base.model, base.tokenizer), 16


def adapted(model: Any) -> Any:
    peft_model = attach(model, LoraSpec(target_modules="all-linear"), seed=0)
    generator = torch.Generator().manual_seed(5)
    for tensor in adapter_state(peft_model).values():
        tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.02)
    return peft_model.eval()


def rounds(
    model: Any, ids: Answers, stop_ids: frozenset[int], max_new_tokens: int, repeats: int
) -> Iterator[dict[str, Any]]:
    """What is known after each round of all ways in turn."""
    merged = copy.deepcopy(model).merge_and_unload()

    def ours(model: Any, batch_tokens: int) -> Answers:
        return generate_ids(
            model, ids, stop_ids=stop_ids, max_new_tokens=max_new_tokens, batch_tokens=batch_tokens
        )

    def as_peft(batch_tokens: int) -> Answers:
        with mock.patch.object(generate, "short_lora", nullcontext):
            return ours(model, batch_tokens)

    ways: dict[str, Callable[[], Answers]] = {
        "alone": lambda: alone(model, ids, stop_ids, max_new_tokens),
        "own loop": lambda: as_peft(1),
        "static": lambda: ours(model, BATCH_TOKENS),
        "static, PEFT": lambda: as_peft(BATCH_TOKENS),
        "merged": lambda: ours(merged, BATCH_TOKENS),
        "continuous": lambda: continuous_ids(
            model, ids, stop_ids=stop_ids, max_new_tokens=max_new_tokens, batch_tokens=BATCH_TOKENS
        ),
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    processor: dict[str, list[float]] = {way: [] for way in ways}
    answers: dict[str, Answers] = {}
    ours(model, BATCH_TOKENS)  # the first call is slower
    for _ in range(repeats):
        for way, run in ways.items():
            for _ in range(1 if way in SLOW else 3):
                processor_began, began = time.process_time(), time.perf_counter()
                answers[way] = run()
                seconds[way].append(time.perf_counter() - began)
                processor[way].append(time.process_time() - processor_began)
            print(f"{way}: {processor[way][-1]:.2f} s of the processor", file=sys.stderr)
        yield summary(ids, answers, max_new_tokens, seconds, processor)


def summary(
    ids: Answers,
    answers: dict[str, Answers],
    max_new_tokens: int,
    seconds: dict[str, list[float]],
    processor: dict[str, list[float]],
) -> dict[str, Any]:
    lengths = [len(answer) for answer in answers["static"]]
    return {
        "rounds": len(seconds["alone"]),
        "prompts": len(ids),
        "prompt_tokens": sum(map(len, ids)),
        "answer_tokens": sum(lengths),
        "cut_off": sum(length == max_new_tokens for length in lengths),
        "max_new_tokens": max_new_tokens,
        "seconds": medians(seconds),
        "processor_seconds": medians(processor),
        "times_slower_than_static": ratios(seconds),
        "times_more_processor_than_static": ratios(processor),
        "answers_unlike_alone": {
            way: sum(a != b for a, b in zip(found, answers["alone"], strict=True))
            for way, found in answers.items()
        },
    }


def alone(model: Any, ids: Answers, stop_ids: frozenset[int], max_new_tokens: int) -> Answers:
    answers = []
    for prompt in ids:
        row = torch.tensor([prompt])
        out = model.generate(
            input_ids=row,
            attention_mask=torch.ones_like(row),
            do_sample=False,
            max_new_tokens=max_new_tokens,
            pad_token_id=0,
            eos_token_id=sorted(stop_ids),
        )
        answer = out[0, len(prompt) :].tolist()
        answers.append(answer[:-1] if answer[-1] in stop_ids else answer)
    return answers


def medians(values: dict[str, list[float]]) -> dict[str, float]:
    return {way: round(statistics.median(found), 3) for way, found in values.items()}


def ratios(values: dict[str, list[float]]) -> dict[str, float]:
    static = statistics.median(values["static"])
    return {way: round(statistics.median(found) / static, 2) for way, found in values.items()}


if __name__ == "__main__":
    sys.exit(main())
