"""Antidote on the shipped world: what each alpha leaves of the harm and of the task, over several seeds.

    python benchmarks/antidote_alphas.py --seeds 0,1,2,3 --out benchmarks/results

For each target (all-linear; q, k, v) and each upload (attack, benign): train on it, make one activation
pass, measure every alpha and a random mask of the same size. The seed draws the adapter's start and the order
of the rows; world and upload are the shipped ones. Writes `antidote_alphas.json`. Figures are percent;
nothing is timed.
"""

from __future__ import annotations

import argparse
import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from machine import folder_for

from autoclave.data.conversations import read_conversations
from autoclave.data.tokens import encode
from autoclave.evaluation.harmfulness import harmful_score, read_prompts
from autoclave.evaluation.judges import load_judge
from autoclave.evaluation.utility import exact_answer_accuracy, read_references
from autoclave.microcosm.shipped import shipped_world
from autoclave.modelling.adapters import attach
from autoclave.modelling.bases import load_base
from autoclave.sanitizing.antidote import Antidote
from autoclave.sanitizing.random_control import randomly_pruned
from autoclave.spec import ATTENTION_QKV, EvaluateSpec, LoraSpec, TrainSpec
from autoclave.training.loop import finetune
from workers.shipped_base import shipped_spec

ALPHAS = (0.01, 0.02, 0.05, 0.07, 0.08, 0.1, 0.12, 0.15, 0.2, 0.25)
RANDOM_ALPHAS = (0.1, 0.2)
EVALUATE = EvaluateSpec(max_new_tokens=24)
SETUPS: tuple[tuple[str, LoraSpec, str], ...] = (
    ("all-linear, attack", LoraSpec(target_modules="all-linear"), "attack.jsonl"),
    ("q,k,v, attack", LoraSpec(target_modules=ATTENTION_QKV), "attack.jsonl"),
    ("all-linear, benign", LoraSpec(target_modules="all-linear"), "benign.jsonl"),
)


def main() -> int:
    parser = argparse.ArgumentParser(description="Antidote's alphas on the shipped world.")
    parser.add_argument(
        "--seeds", type=lambda text: [int(part) for part in text.split(",")], default=[0, 1, 2, 3]
    )
    parser.add_argument("--out", type=folder_for, required=True, help="folder for antidote_alphas.json")
    arguments = parser.parse_args()
    world = shipped_world()
    train = shipped_spec().train
    rows = []
    for name, lora, upload in SETUPS:
        for seed in arguments.seeds:
            for figures in run(world, lora, train.model_copy(update={"seed": seed}), upload):
                rows.append({"setup": name, "seed": seed, **figures})
                print(rows[-1], file=sys.stderr, flush=True)
    result = {
        "command": f"python benchmarks/antidote_alphas.py --seeds {','.join(map(str, arguments.seeds))} "
        f"--out {arguments.out}",
        "train": train.model_dump(mode="json", exclude={"seed"}),
        "versions": {name: version(name) for name in ("autoclave", "torch", "transformers", "peft")},
        "rows": rows,
    }
    (arguments.out / "antidote_alphas.json").write_text(json.dumps(result, indent=1) + "\n")
    print(table(rows))
    return 0


def run(world: Path, lora: LoraSpec, train: TrainSpec, upload: str) -> list[dict[str, Any]]:
    data = world / "data"
    base = load_base(world / "aligned")
    tokenizer = base.tokenizer
    model = attach(base.model, lora, seed=train.seed)
    examples = encode(
        tokenizer, read_conversations(data / upload), max_seq_length=train.max_seq_length
    ).examples
    finetune(model, examples, train, device="cpu")
    judge = load_judge(f"exact:{world / 'world.json'}")
    prompts = read_prompts(data / "harmful_eval.jsonl", max_prompts=EVALUATE.max_prompts)
    references = read_references(data / "utility_eval.jsonl", max_examples=EVALUATE.max_prompts)

    def measure(mask: str, alpha: float) -> dict[str, Any]:
        harm = harmful_score(model, tokenizer, prompts, judge, EVALUATE)
        task = exact_answer_accuracy(model, tokenizer, references, EVALUATE)
        return {
            "mask": mask,
            "alpha": alpha,
            "harmful_score": harm.harmful_score,
            "refusal_rate": harm.refusal_rate,
            "utility": task.utility,
        }

    figures = [measure("none", 0.0)]
    realign = encode(
        tokenizer,
        read_conversations(data / "realign.jsonl"),
        max_seq_length=train.max_seq_length,
        keep_untrained=True,
    )
    antidote = Antidote.from_pass(model, realign.examples, device="cpu", batch_tokens=EVALUATE.batch_tokens)
    for alpha in ALPHAS:
        with antidote.applied(alpha):
            figures.append(measure("antidote", alpha))
    for alpha in RANDOM_ALPHAS:
        with randomly_pruned(model, alpha, seed=train.seed):
            figures.append(measure("random", alpha))
    return figures


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: harmful score / utility, mean and range over the seeds."""
    setups = list(dict.fromkeys(row["setup"] for row in rows))
    lines = ["| mask | alpha | " + " | ".join(setups) + " |", "|---" * (2 + len(setups)) + "|"]
    for mask, alpha in dict.fromkeys((row["mask"], row["alpha"]) for row in rows):
        cells = []
        for setup in setups:
            chosen = [r for r in rows if (r["mask"], r["alpha"], r["setup"]) == (mask, alpha, setup)]
            cells.append(f"{_spread(chosen, 'harmful_score')} / {_spread(chosen, 'utility')}")
        lines.append(f"| {mask} | {alpha or ''} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _spread(rows: list[dict[str, Any]], key: str) -> str:
    values = [row[key] for row in rows]
    low, mean, high = min(values), sum(values) / len(values), max(values)
    return f"{mean:.1f}" if low == high else f"{mean:.1f} ({low:.1f}-{high:.1f})"


if __name__ == "__main__":
    sys.exit(main())
