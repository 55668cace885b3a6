"""What a defence of training takes beside plain training of the same stage: ratios of time and memory.

Both are of a few steps on the same data in one process, on one thread. Time is processor time, which other
work on the machine stretches little, all methods in turn, the median of the rounds. Memory is the most bytes
that tensors held at once, weights of the base included: those that torch's allocator handed out, counted by
its profiler. (Resident memory says nothing here: Python and its libraries are a hundred times the model.)
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch.profiler import ProfilerActivity, profile

from autoclave.data.conversations import read_conversations
from autoclave.data.tokens import Example, encode
from autoclave.defences.methods import align_objective, finetune_objective
from autoclave.evidence.aligned import alignment_of, write_operator_files
from autoclave.evidence.recipes import RECIPES, Recipe
from autoclave.evidence.runs import Run
from autoclave.modelling.adapters import attach, detach
from autoclave.modelling.bases import LoadedBase, load_base
from autoclave.spec import AlignMethod, LoraSpec, TrainSpec
from autoclave.training.loop import finetune
from autoclave.training.objective import Objective

DEVICE = "cpu"
ROUNDS = 3
ALIGN_STEPS = 6
FINETUNE_STEPS = 30
MEMORY_STEPS = 3
# Starts `work` on so many steps.
Work = Callable[[int], None]


def measure_costs(world_dir: Path, *, seed: int, rounds: int = ROUNDS) -> list[dict[str, Any]]:
    """A row for each defence: its stage, `time_ratio` and `memory_ratio` to plain training of that stage with
    the same data and number of steps on the user's or the operator's rows, `peak_mib`."""
    lora, alignment = alignment_of(world_dir)
    base = load_base(world_dir / "base")
    with tempfile.TemporaryDirectory() as scratch:
        files = write_operator_files(world_dir, Path(scratch))
        refusals, harmful = (_encoded(base, file) for file in (files.refusals, files.harmful))
    attack = _encoded(base, world_dir / "data" / "attack.jsonl")
    run = Run(seed=seed)

    def align(method: AlignMethod) -> Work:
        def work(steps: int) -> None:
            some = refusals[: steps * alignment.batch_size]
            # repnoise pairs the lines, booster draws from them.
            objective = align_objective(method, some, harmful[: len(some)])
            train = alignment.model_copy(update={"n_epochs": 1, "seed": seed})
            _train(base, lora, train, some, objective)

        return work

    def tune(recipe: Recipe) -> Work:
        def work(steps: int) -> None:
            train = run.train().model_copy(update={"n_epochs": 1})
            some = attack[: steps * train.batch_size]
            _train(base, run.lora(), train, some, finetune_objective(recipe.finetune, refusals))

        return work

    weights_bytes = sum(parameter.nbytes for parameter in base.model.parameters())
    phases = {phase.method.name: phase.method for recipe in RECIPES.values() for phase in recipe.phases}
    assert "sft" in phases, "some recipe trains plainly, which the others are compared with"
    aligning = _costs(
        {name: align(method) for name, method in phases.items()},
        ALIGN_STEPS,
        rounds,
        weights_bytes=weights_bytes,
    )
    tuning = _costs(
        {name: tune(recipe) for name, recipe in RECIPES.items() if not recipe.phases},
        FINETUNE_STEPS,
        rounds,
        weights_bytes=weights_bytes,
    )
    rows = []
    for name, recipe in RECIPES.items():
        if recipe.phases:
            share = sum(phase.share * aligning[phase.method.name]["time_ratio"] for phase in recipe.phases)
            largest = max((aligning[phase.method.name] for phase in recipe.phases), key=_peak)
            cost = largest | {"time_ratio": round(share, 3)}
        else:
            cost = tuning[name]
        rows.append({"state": "cost", "seed": seed, "defence": name, "stage": recipe.stage, **cost})
    return rows


def _costs(
    works: Mapping[str, Work], steps: int, rounds: int, *, weights_bytes: int
) -> dict[str, dict[str, float]]:
    """By method; "sft" is what the others are compared with."""
    # The first steps warm up, too.
    held = {name: weights_bytes + peak_bytes(partial(work, MEMORY_STEPS)) for name, work in works.items()}
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            started = time.process_time()
            work(steps)
            seconds[name].append(time.process_time() - started)
    return {
        name: {
            "time_ratio": round(
                statistics.median(a / b for a, b in zip(seconds[name], seconds["sft"], strict=True)), 3
            ),
            "memory_ratio": round(held[name] / held["sft"], 3),
            "peak_mib": round(held[name] / 2**20, 2),
        }
        for name in works
    }


def _peak(cost: Mapping[str, float]) -> float:
    return cost["peak_mib"]


def peak_bytes(work: Callable[[], None]) -> int:
    """The most bytes of CPU tensors that were made by `work` and alive at once."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        work()
    events: Iterable[Any] = profiled.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    held = most = 0
    for _, change in changes:
        held += change
        most = max(most, held)
    return most


def _train(
    base: LoadedBase, lora: LoraSpec, train: TrainSpec, examples: list[Example], objective: Objective
) -> None:
    model = attach(base.model, lora, seed=train.seed)
    try:
        finetune(model, examples, train, device=DEVICE, objective=objective)
    finally:
        detach(model)


def _encoded(base: LoadedBase, file: Path) -> list[Example]:
    return encode(base.tokenizer, read_conversations(file), max_seq_length=512).examples
