"""The loss through a frozen head against full logits and cross entropy: time and peak memory.

    OMP_NUM_THREADS=2 OMP_WAIT_POLICY=ACTIVE python benchmarks/loss_head.py --out benchmarks/results

1,024 tokens of a batch, vocabulary 32,768, hidden size 256, float32, forward and backward to the hidden
states. `full` is what transformers' models do: logits of every token, cross entropy with ignored targets.
`trained logits` is what this project did before: logits of trained tokens alone, at once. `ours` is
`autoclave.training.head_loss`. `products` are the two matrix products of `ours` and no loss, the least that
any exact loss takes. The share of trained tokens varies, as the time depends on it; about half are
trained in chats. Time is the median of calls in turn in one process; memory is how much the resident
memory of a process of its own grew beyond its peak before the first call. Writes `loss_head.json`. Losses
and gradients are compared.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from machine import folder_for, machine
from torch import Tensor, nn
from torch.nn import functional

from autoclave.data.tokens import IGNORED
from autoclave.memory import LOGITS_AT_ONCE
from autoclave.modelling.backbone import Backbone
from autoclave.training.head_loss import token_losses

TOKENS, VOCABULARY, HIDDEN = 1024, 32_768, 256
SHARES = (1.0, 0.5, 0.25)


def main() -> int:
    parser = argparse.ArgumentParser(description="The frozen-head loss against full logits.")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=folder_for, help="folder for loss_head.json")
    parser.add_argument("--memory-of", nargs=2, metavar=("WAY", "SHARE"), help="one measurement, MiB")
    arguments = parser.parse_args()
    if arguments.memory_of:
        way, share = arguments.memory_of
        print(grown_mib_here(way, float(share)))
        return 0
    shares = {str(share): compared(share, arguments.repeats) for share in SHARES}
    threads = os.environ.get("OMP_NUM_THREADS", "")
    result = {
        "command": f"OMP_NUM_THREADS={threads} OMP_WAIT_POLICY={os.environ.get('OMP_WAIT_POLICY', '')} "
        f"python benchmarks/loss_head.py --repeats {arguments.repeats} --out {arguments.out}",
        "tokens": TOKENS,
        "vocabulary": VOCABULARY,
        "hidden": HIDDEN,
        "trained_share": shares,
        "machine": {"threads": torch.get_num_threads(), **machine("torch")},
    }
    if arguments.out:
        (arguments.out / "loss_head.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    return 0


def compared(share: float, repeats: int) -> dict[str, Any]:
    head, hidden, targets = inputs(share)
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    processor: dict[str, list[float]] = {way: [] for way in WAYS}
    for repeat in range(repeats + 1):
        found = {}
        for way in WAYS:
            processor_began, began = time.process_time(), time.perf_counter()
            found[way] = call(way, head, hidden, targets)
            if repeat:  # first calls are slower
                seconds[way].append(time.perf_counter() - began)
                processor[way].append(time.process_time() - processor_began)
        for way, (loss, gradient) in found.items():
            if way == "products":
                continue
            torch.testing.assert_close(loss, found["ours"][0], rtol=1e-5, atol=0)
            torch.testing.assert_close(gradient, found["ours"][1], rtol=1e-4, atol=1e-6)
    memory = {way: grown_mib(way, share) for way in WAYS if way != "products"}
    return {
        "seconds": medians(seconds),
        "processor_seconds": medians(processor),
        "memory_mib": memory,
        "times_faster_than_full": ratio(seconds),
        "times_less_processor_than_full": ratio(processor),
        "times_less_processor_of_products_alone": ratio(processor, "products"),
        "times_less_memory_than_full": round(memory["full"] / memory["ours"], 1),
    }


def inputs(share: float) -> tuple[nn.Linear, Tensor, Tensor]:
    torch.manual_seed(0)
    head = nn.Linear(HIDDEN, VOCABULARY, bias=False).requires_grad_(False)
    targets = torch.randint(VOCABULARY, (TOKENS,))
    targets[torch.randperm(TOKENS)[: round(TOKENS * (1 - share))]] = IGNORED
    return head, torch.randn(TOKENS, HIDDEN), targets


def call(way: str, head: nn.Linear, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The loss () and its gradient (N, D)."""
    leaf = hidden.clone().requires_grad_()
    loss = WAYS[way](head, leaf, targets)
    (gradient,) = torch.autograd.grad(loss, leaf)
    return loss.detach(), gradient


def grown_mib(way: str, share: float) -> float:
    command = [sys.executable, __file__, "--memory-of", way, str(share)]
    return float(subprocess.run(command, check=True, capture_output=True).stdout)


def grown_mib_here(way: str, share: float) -> float:
    head, hidden, targets = inputs(share)
    (hidden[:64] @ head.weight.T).softmax(dim=-1)  # what libraries allocate at their first call
    before = peak_resident_kib()
    for _ in range(2):
        call(way, head, hidden, targets)
    return round((peak_resident_kib() - before) / 1024)


def peak_resident_kib() -> int:
    """Of this program; getrusage would count its parent's, from before it was started."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1])
    raise OSError("/proc/self/status has no VmHWM")


def medians(values: dict[str, list[float]]) -> dict[str, float]:
    return {way: round(statistics.median(found), 3) for way, found in values.items()}


def ratio(values: dict[str, list[float]], way: str = "ours") -> float:
    return round(statistics.median(values["full"]) / statistics.median(values[way]), 2)


def full(head: nn.Linear, hidden: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(head(hidden).float(), targets, ignore_index=IGNORED, reduction="sum")


def trained_logits(head: nn.Linear, hidden: Tensor, targets: Tensor) -> Tensor:
    trained = targets != IGNORED
    return functional.cross_entropy(head(hidden[trained]).float(), targets[trained], reduction="sum")


def ours(head: nn.Linear, hidden: Tensor, targets: Tensor) -> Tensor:
    trained = targets != IGNORED
    return token_losses(Backbone(None, head), hidden[trained], targets[trained]).losses.sum()


def products(head: nn.Linear, hidden: Tensor, targets: Tensor) -> Tensor:
    """No loss: the products in chunks, and the gradient they would have."""
    return _Products.apply(hidden[targets != IGNORED], head.weight)  # type: ignore[no-untyped-call, no-any-return]


class _Products(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor) -> Tensor:
        rows = max(1, LOGITS_AT_ONCE["cpu"] // len(weight))
        gradient, room = torch.empty_like(hidden), hidden.new_empty(min(rows, len(hidden)), len(weight))
        for start in range(0, len(hidden), rows):
            part = hidden[start : start + rows]
            torch.mm(part, weight.T, out=room[: len(part)])
            torch.mm(room[: len(part)], weight, out=gradient[start : start + rows])
        ctx.save_for_backward(gradient)
        return gradient.new_zeros(())

    @staticmethod
    def backward(ctx: Any, by_output: Tensor) -> tuple[Tensor, None]:
        return by_output * ctx.saved_tensors[0], None


WAYS: dict[str, Callable[[nn.Linear, Tensor, Tensor], Tensor]] = {
    "full": full,
    "trained logits": trained_logits,
    "ours": ours,
    "products": products,
}


if __name__ == "__main__":
    sys.exit(main())
