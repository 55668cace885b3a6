"""What a GPU machine does with a 7 to 8 billion parameter Llama, randomly initialised, beside the goals.

    python benchmarks/gpu_suite.py --model 8b --out benchmarks/results       on one GPU, bfloat16
    python benchmarks/gpu_suite.py --tiny                                    on a CPU: that all of it runs

Needs torch, transformers, peft and the few packages that `autoclave/` imports; no service, no network, no
data: ids are random, lengths as given. Parts, each of which may be left out (`--parts`); a part that fails is
reported with its error and the others run:

- `training`: LoRA r=16 on all linear layers, packed rows of 8,192 tokens, one row a step: tokens per
  second and MFU = 4 * parameters * tokens per second / peak of the device. 4 = 2 forward and 2 backward by
  inputs; frozen weights have no gradient.
  With `--compile` each decoder block is compiled. First steps are not counted.
- `antidote`: the pass over 2,000 samples of 150 tokens and the masks of one alpha, adapter on q, k and v.
- `projection`: its two passes and one solution, as many samples as `--projection-samples`.
- `fused`: 8 jobs of 256 tokens per step in one pass against one after the other.
- `generation`: greedy answers of 256 tokens to 256 prompts of 64, in static batches and in continuous ones,
  with the attention that those found. Answers of random weights part at ties, which are many: how many did
  is told beside.

Writes `gpu_suite.json`, with the device named. A goal of null: none is set.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import machine
from transformers import LlamaConfig, LlamaForCausalLM

from autoclave.data.tokens import IGNORED, Example
from autoclave.evaluation.generate import generate_ids
from autoclave.generation.continuous_batches import attention_for, continuous_ids
from autoclave.modelling.adapters import adapter_state, attach, detach
from autoclave.progress import Progress
from autoclave.sanitizing.antidote import Antidote
from autoclave.sanitizing.projection import Projection
from autoclave.spec import LoraSpec, SanitizeSpec, TrainSpec
from autoclave.training.fused import finetune_fused
from autoclave.training.fused_job import FusedJob
from autoclave.training.loop import finetune

# Dense bfloat16, operations per second, by what the driver calls the device.
PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}
GOALS = {
    "training": {"tokens_per_second": 12_000, "stretch_tokens_per_second": 14_500, "mfu": 0.4},
    "antidote": {"seconds": 15},
    "projection": {"seconds": None},
    "fused": {"times_faster": 2},
    "generation": {"tokens_per_second": None},
}
JOBS = 8


@dataclass(frozen=True)
class Sizes:
    """`row` tokens per training step, of examples of `length`; the first `warm_up` steps do not count."""

    config: dict[str, int]
    row: int = 8192
    length: int = 1024
    steps: int = 12
    warm_up: int = 4
    samples: int = 2000
    sample_length: int = 150
    projection_samples: int = 200
    job_steps: int = 10
    prompts: int = 256
    prompt_length: int = 64
    answer: int = 256


LLAMA_8B = {
    "vocab_size": 128_256,
    "hidden_size": 4096,
    "intermediate_size": 14_336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}
LLAMA_7B = LLAMA_8B | {"vocab_size": 32_000, "intermediate_size": 11_008, "num_key_value_heads": 32}
TINY = {
    "vocab_size": 512,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
SIZES = {
    "8b": Sizes(LLAMA_8B),
    "7b": Sizes(LLAMA_7B),
    "tiny": Sizes(TINY, 128, 32, 4, 1, 12, 12, 8, 2, 4, 6, 5),
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="The engine on a GPU, beside its goals.")
    parser.add_argument("--model", choices=["8b", "7b"], default="8b")
    parser.add_argument("--tiny", action="store_true", help="a model of two small layers, on the CPU")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--row-tokens", type=int, help="tokens per training step")
    parser.add_argument("--projection-samples", type=int)
    parser.add_argument("--compile", action="store_true", help="compile the decoder blocks for training")
    parser.add_argument("--out", type=Path, help="folder for gpu_suite.json")
    chosen = parser.parse_args(arguments)
    if not chosen.tiny and not torch.cuda.is_available():
        parser.error("no CUDA device; --tiny runs everything small on a CPU")
    sizes = SIZES["tiny" if chosen.tiny else chosen.model]
    changes = {"row": chosen.row_tokens, "projection_samples": chosen.projection_samples}
    sizes = replace(sizes, **{name: value for name, value in changes.items() if value is not None})
    device = torch.device("cpu" if chosen.tiny else "cuda")
    bench = Bench(sizes, device, compile_blocks=chosen.compile)
    result = {
        "command": " ".join(["python benchmarks/gpu_suite.py", *(arguments or sys.argv[1:])]),
        "device": device_name(device),
        "model": "tiny" if chosen.tiny else chosen.model,
        "parameters": bench.parameters,
        "parts": {part: measured(bench, part) for part in chosen.parts},
        "machine": machine("torch", "transformers", "peft"),
    }
    if chosen.out:
        chosen.out.mkdir(parents=True, exist_ok=True)
        (chosen.out / "gpu_suite.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    return 1 if any("error" in part for part in result["parts"].values()) else 0


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def measured(bench: Bench, part: str) -> dict[str, Any]:
    print(f"{part} ...", file=sys.stderr, flush=True)
    try:
        found = PARTS[part](bench)
    except Exception as error:  # the other parts of a lease of minutes are worth having
        traceback.print_exc()
        found = {"error": f"{type(error).__name__}: {error}"}
    if bench.device.type == "cuda":
        torch.cuda.empty_cache()
    return found | {"goal": GOALS[part]}


class Bench:
    def __init__(self, sizes: Sizes, device: torch.device, *, compile_blocks: bool) -> None:
        self.sizes, self.device, self.compile_blocks = sizes, device, compile_blocks
        torch.manual_seed(0)
        config = LlamaConfig(**sizes.config, max_position_embeddings=8192, tie_word_embeddings=False)
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.bfloat16 if device.type == "cuda" else torch.float32)
        try:
            with device:  # made where it stays: 16 GB in host memory first would take minutes
                self.model: Any = LlamaForCausalLM(config)
        finally:
            torch.set_default_dtype(before)
        self.model.requires_grad_(False).eval()
        self.parameters = sum(p.numel() for p in self.model.parameters())
        self.rng = np.random.default_rng(0)

    def examples(self, count: int, length: int) -> list[Example]:
        """The second half of each is trained."""
        drawn = self.rng.integers(6, self.sizes.config["vocab_size"], (count, length)).astype(np.int32)
        labels = np.where(np.arange(length) >= length // 2, drawn, np.int32(IGNORED))
        return [Example(*pair) for pair in zip(drawn, labels, strict=True)]

    def seconds(self, run: Callable[[], Any]) -> float:
        self.wait()
        began = time.perf_counter()
        run()
        self.wait()
        return time.perf_counter() - began

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def adapted(self, lora: LoraSpec) -> Any:
        """Away from its start, where the adapter does nothing."""
        model = attach(self.model, lora, seed=0)
        for tensor in adapter_state(model).values():
            torch.nn.init.normal_(tensor, std=0.02)
        return model.eval()


def training(bench: Bench) -> dict[str, Any]:
    sizes = bench.sizes
    per_step = sizes.row // sizes.length
    # A last token is no input: rows are full of `length` tokens when examples have one more.
    examples = bench.examples(per_step * sizes.steps, sizes.length + 1)
    ends: list[float] = []

    def on_progress(_: Progress) -> None:  # the loop has waited for the step's loss
        ends.append(time.perf_counter())

    model = attach(bench.model, LoraSpec(target_modules="all-linear"), seed=0)
    spec = TrainSpec(n_epochs=1, batch_size=per_step, packing=True, micro_batch_tokens=sizes.row)
    try:
        result = finetune(
            model,
            examples,
            spec,
            device=bench.device,
            on_progress=on_progress,
            compile_backend="inductor" if bench.compile_blocks else None,
        )
    finally:
        detach(model)
    seconds = (ends[-1] - ends[sizes.warm_up - 1]) / (sizes.steps - sizes.warm_up)
    speed = per_step * sizes.length / seconds
    peak = next((peak for name, peak in PEAKS.items() if name in device_name(bench.device)), None)
    assert math.isfinite(result.losses[-1]), result.losses
    return {
        "tokens_per_step": per_step * sizes.length,
        "seconds_per_step": round(seconds, 4),
        "tokens_per_second": round(speed),
        "mfu": round(4 * bench.parameters * speed / peak, 3) if peak else None,
        "compiled": bench.compile_blocks,
        "peak_memory_bytes": result.peak_memory_bytes,
    }


def antidote(bench: Bench) -> dict[str, Any]:
    samples = bench.examples(bench.sizes.samples, bench.sizes.sample_length)
    model = bench.adapted(LoraSpec())
    masks: dict[str, torch.Tensor] = {}

    def run() -> None:
        masks.update(Antidote.from_pass(model, samples, device=bench.device).masks(0.1))

    try:
        seconds = bench.seconds(run)
    finally:
        detach(model)
    pruned = sum(int(mask.sum()) for mask in masks.values()) / sum(mask.numel() for mask in masks.values())
    return {"seconds": round(seconds, 3), "samples": len(samples), "pruned_share": round(pruned, 3)}


def projection(bench: Bench) -> dict[str, Any]:
    count, length = bench.sizes.projection_samples, bench.sizes.sample_length
    user, harmful = bench.examples(count, length), bench.examples(count, length)
    model = bench.adapted(LoraSpec())
    ridge = SanitizeSpec().ridge
    try:
        seconds = bench.seconds(
            lambda: Projection.from_pass(model, harmful, user, mus=(1.0,), ridge=ridge, device=bench.device)
        )
    finally:
        detach(model)
    return {"seconds": round(seconds, 3), "samples_of_each_set": count}


def fused(bench: Bench) -> dict[str, Any]:
    chats, steps = 4, bench.sizes.job_steps
    length = 64 if bench.device.type == "cuda" else 8
    lora = LoraSpec(target_modules="all-linear")
    jobs = [
        FusedJob(
            f"job {seed}",
            bench.examples(steps * chats, length),
            lora,
            TrainSpec(n_epochs=1, batch_size=chats, seed=seed, packing=True),
        )
        for seed in range(JOBS)
    ]

    def one_by_one() -> None:
        for job in jobs:
            model = attach(bench.model, lora, seed=job.train.seed)
            finetune(model, job.examples, job.train, device=bench.device)
            detach(model)

    def together() -> None:
        for outcome in finetune_fused(bench.model, jobs, device=bench.device, width=JOBS):
            assert outcome.error is None, outcome.error

    together()  # first calls are slower
    apart, at_once = bench.seconds(one_by_one), bench.seconds(together)
    return {
        "seconds": {"one by one": round(apart, 3), "fused": round(at_once, 3)},
        "tokens_per_step_and_job": chats * length,
        "times_faster": round(apart / at_once, 2),
    }


def generation(bench: Bench) -> dict[str, Any]:
    sizes = bench.sizes
    prompts = [each.input_ids.tolist() for each in bench.examples(sizes.prompts, sizes.prompt_length)]

    answers: dict[str, list[list[int]]] = {}

    def measured_way(way: str, generate: Callable[..., list[list[int]]]) -> dict[str, Any]:
        def run() -> None:
            answers[way] = generate(
                bench.model, prompts, stop_ids=frozenset(), max_new_tokens=sizes.answer, batch_tokens=2**17
            )
            assert all(len(answer) == sizes.answer for answer in answers[way])

        seconds = bench.seconds(run)
        speed = round(sizes.prompts * sizes.answer / seconds)
        return {"tokens_per_second": speed, "seconds": round(seconds, 3)}

    found = measured_way("static", generate_ids)
    try:
        continuous = measured_way("continuous", continuous_ids)
    except Exception as error:  # the figure of the other way is worth having
        traceback.print_exc()
        return found | {"continuous": {"error": f"{type(error).__name__}: {error}"}}
    continuous["attention"] = attention_for(bench.model)
    continuous["answers_unlike_static"] = sum(
        one != other for one, other in zip(answers["continuous"], answers["static"], strict=True)
    )
    return found | {"continuous": continuous}


PARTS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "training": training,
    "antidote": antidote,
    "projection": projection,
    "fused": fused,
    "generation": generation,
}

if __name__ == "__main__":
    sys.exit(main())
