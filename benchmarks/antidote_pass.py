"""Antidote's pass and masks against the authors' procedure, on the same CPU, in turn, in one process.

    OMP_NUM_THREADS=2 OMP_WAIT_POLICY=PASSIVE python benchmarks/antidote_pass.py --out benchmarks/results

512 samples of 4 to 32 and of 8 to 256 random tokens on the shipped aligned base, 96 of the latter on a
random Llama (it is twenty times as large), and the shipped realignment set; q, k and v adapted (the paper's
choice). Writes
`antidote_pass.json`: medians, the authors' time over ours, and how far resident memory grew during each. Only
ratios mean anything elsewhere; processor time is there because other programs do not change it. The
authors' procedure is written down here after docs/antidote.md 3 and 4: float32, layer by layer, one example
at a time, each layer twice, the hidden states of all examples held, a running mean of squares.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import folder_for, machine
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from autoclave.data.conversations import read_conversations
from autoclave.data.tokens import Example, encode
from autoclave.microcosm.shipped import shipped_world
from autoclave.modelling.adapters import adapter_state, attach
from autoclave.modelling.bases import load_base
from autoclave.sanitizing.activations import factor_layers
from autoclave.sanitizing.antidote import Antidote
from autoclave.spec import LoraSpec

ALPHA = 0.1
SHORT, LONG = (4, 32), (8, 256)
OURS = ("float64", "model")


def main() -> int:
    parser = argparse.ArgumentParser(description="Antidote's pass against the authors' procedure.")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batch-tokens", type=int, default=8192)
    parser.add_argument("--only", choices=sorted(SETUPS), help="one of the setups")
    parser.add_argument("--out", type=folder_for, required=True, help="folder for antidote_pass.json")
    arguments = parser.parse_args()
    setups = {
        name: compare(*build(), arguments.repeats, arguments.batch_tokens)
        for name, build in SETUPS.items()
        if arguments.only in (None, name)
    }
    result = {
        "command": f"OMP_NUM_THREADS={torch.get_num_threads()} OMP_WAIT_POLICY="
        f"{os.environ.get('OMP_WAIT_POLICY', '')} python benchmarks/antidote_pass.py --repeats "
        f"{arguments.repeats} --batch-tokens {arguments.batch_tokens} --out {arguments.out}",
        "alpha": ALPHA,
        "setups": setups,
        "machine": {"threads": torch.get_num_threads(), **machine("torch", "transformers", "peft")},
    }
    (arguments.out / "antidote_pass.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    return 0


def shipped_base(lengths: tuple[int, int]) -> tuple[Any, list[Example]]:
    base = load_base(shipped_world() / "aligned").model
    return base, random_examples(512, base.config.vocab_size, lengths)


def shipped_base_and_data() -> tuple[Any, list[Example]]:
    base = load_base(shipped_world() / "aligned")
    conversations = read_conversations(shipped_world() / "data" / "realign.jsonl")
    encoded = encode(base.tokenizer, conversations, max_seq_length=2048, keep_untrained=True)
    return base.model, encoded.examples


def random_llama() -> tuple[Any, list[Example]]:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=8192,
        hidden_size=384,
        intermediate_size=1024,
        num_hidden_layers=12,
        num_attention_heads=6,
        max_position_embeddings=512,
        pad_token_id=0,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).eval(), random_examples(96, config.vocab_size, LONG)


SETUPS: dict[str, Callable[[], tuple[Any, list[Example]]]] = {
    "shipped base, short": partial(shipped_base, SHORT),
    "shipped base": partial(shipped_base, LONG),
    "shipped base, shipped realignment set": shipped_base_and_data,
    "random Llama": random_llama,
}


def random_examples(count: int, vocab_size: int, lengths: tuple[int, int]) -> list[Example]:
    """Lengths are uniform between the two, both included."""
    rng = np.random.default_rng(0)
    drawn = rng.integers(lengths[0], lengths[1] + 1, count)
    ids = [rng.integers(2, vocab_size, length).astype(np.int32) for length in drawn]
    return [Example(each, each) for each in ids]


def compare(base: Any, examples: list[Example], repeats: int, batch_tokens: int) -> dict[str, Any]:
    num_parameters = sum(p.numel() for p in base.parameters())
    model = attach(base, LoraSpec(r=16), seed=1)
    generator = torch.Generator().manual_seed(2)
    for tensor in adapter_state(model).values():
        tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.02)
    model.eval()

    def ours(precision: Any) -> Callable[[], dict[str, Tensor]]:
        return lambda: Antidote.from_pass(
            model, examples, device="cpu", precision=precision, batch_tokens=batch_tokens
        ).masks(ALPHA)

    runs = {"authors": lambda: authors_masks(model, examples, ALPHA)} | {name: ours(name) for name in OURS}
    repeated: dict[str, list[Measured]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            repeated[name].append(measured(run))
            print(name, repeated[name][-1], file=sys.stderr, flush=True)

    def median(name: str, attribute: str) -> float:
        return statistics.median(getattr(each, attribute) for each in repeated[name])

    theirs = repeated["authors"][0].masks
    return {
        "parameters": num_parameters,
        "samples": len(examples),
        "tokens": sum(len(example) for example in examples),
        "repeats": repeats,
        "times_faster": {
            name: round(median("authors", "seconds") / median(name, "seconds"), 2) for name in OURS
        },
        "times_less_processor_time": {
            name: round(median("authors", "processor_seconds") / median(name, "processor_seconds"), 2)
            for name in OURS
        },
        "medians": {
            name: {key: round(median(name, key), 2) for key in ("seconds", "processor_seconds", "grown_mib")}
            for name in runs
        },
        "seconds_of_each_repeat": {n: [round(each.seconds, 2) for each in rs] for n, rs in repeated.items()},
        "mask_entries": sum(mask.numel() for mask in theirs.values()),
        "mask_entries_that_differ": {
            name: sum(int((repeated[name][0].masks[n] != mask).sum()) for n, mask in theirs.items())
            for name in OURS
        },
    }


@dataclass(frozen=True)
class Measured:
    """`grown_mib`: by how much the peak of resident memory exceeds what it was before (Linux)."""

    masks: dict[str, Tensor] = field(repr=False)
    seconds: float
    processor_seconds: float
    grown_mib: float


def measured(run: Callable[[], dict[str, Tensor]]) -> Measured:
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    before = resident_kib("VmRSS")
    processor, started = time.process_time(), time.perf_counter()
    masks = run()
    seconds, processor = time.perf_counter() - started, time.process_time() - processor
    return Measured(masks, seconds, processor, (resident_kib("VmHWM") - before) / 1024)


def resident_kib(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


@torch.no_grad()
def authors_masks(model: Any, examples: list[Example], alpha: float) -> dict[str, Tensor]:
    decoder = model.get_base_model().model
    states = []
    for example in examples:
        ids = torch.from_numpy(example.input_ids.astype(np.int64))[None]
        hidden = decoder.embed_tokens(ids)
        positions = torch.arange(len(example))[None]
        states.append((hidden, positions, decoder.rotary_emb(hidden, position_ids=positions)))
    names = {layer: name for name, layer in factor_layers(model).items()}
    masks: dict[str, Tensor] = {}
    for layer in decoder.layers:
        means = {module: RunningMean(module) for module in layer.modules() if module in names}
        handles = [module.register_forward_pre_hook(mean) for module, mean in means.items()]
        for hidden, positions, rotary in states:
            layer(hidden, position_ids=positions, position_embeddings=rotary)
        for handle in handles:
            handle.remove()
        for module, mean in means.items():
            scores = module.weight.abs() * torch.sqrt(mean.value)
            kept = int(scores.shape[1] * (1 - alpha))
            order = torch.sort(scores, dim=-1, stable=True).indices
            masks[names[module]] = torch.zeros_like(scores, dtype=torch.bool).scatter_(
                1, order[:, kept:], True
            )
        states = [(layer(h, position_ids=p, position_embeddings=r), p, r) for h, p, r in states]
    return masks


class RunningMean:
    def __init__(self, module: nn.Linear) -> None:
        self.value = torch.zeros(module.in_features)
        self.count = 0

    def __call__(self, _: nn.Module, inputs: tuple[Tensor]) -> None:
        self.value *= self.count / (self.count + 1)
        self.count += 1
        self.value += torch.linalg.vector_norm(inputs[0][0].T, dim=1) ** 2 / self.count


if __name__ == "__main__":
    sys.exit(main())
