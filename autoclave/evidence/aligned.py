"""The bases that the alignment-stage defences make of a world, and the operator's files behind them."""

from __future__ import annotations

import json
import math
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from autoclave.defences.align import align_folder
from autoclave.evidence.recipes import AlignmentFile, AlignPhase, Recipe, epochs_of
from autoclave.microcosm.rows import Row, row, write_rows
from autoclave.microcosm.sizes import named_size
from autoclave.microcosm.world import World
from autoclave.spec import LoraSpec, TrainSpec


class OperatorFiles(NamedTuple):
    """Line i of `refusals` and of `harmful` has the same prompt. The prompts are those of the world's
    alignment data: none is in an attack, in the realignment set or in an evaluation."""

    alignment: Path
    refusals: Path
    harmful: Path

    def of(self, name: AlignmentFile) -> Path:
        return self.alignment if name == "alignment" else self.refusals


def write_operator_files(world_dir: Path, folder: Path) -> OperatorFiles:
    """Takes the refusals out of the world's alignment data, and asks its oracle for the harmful answers."""
    world = World.load(world_dir / "world.json")
    alignment = world_dir / "data" / "alignment.jsonl"
    rows = [json.loads(line) for line in alignment.read_text(encoding="utf-8").splitlines()]
    refusals: list[Row] = [each for each in rows if each["messages"][1]["content"] == world.refusal]
    prompts = [each["messages"][0]["content"] for each in refusals]
    files = OperatorFiles(alignment, folder / "refusals.jsonl", folder / "harmful.jsonl")
    write_rows(files.refusals, refusals)
    write_rows(files.harmful, [row(prompt, world.oracle(prompt).answer) for prompt in prompts])
    return files


def make_base(recipe: Recipe, world_dir: Path, out: Path, *, seed: int) -> list[dict[str, Any]]:
    """Trains the phases one after the other from the world's pretrained base, and writes the last one's
    result to `out`. Returns what each phase says of itself (`defences.align`)."""
    assert recipe.phases, "a recipe without phases uses the world's own aligned base"
    lora, alignment = alignment_of(world_dir)
    records = []
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        files = write_operator_files(world_dir, scratch)
        base, total_steps = (
            world_dir / "base",
            alignment.n_epochs * steps_per_epoch(files.alignment, alignment),
        )
        for number, phase in enumerate(recipe.phases):
            last = number == len(recipe.phases) - 1
            target = out if last else scratch / str(number)
            train = phase_train(phase, files, alignment, total_steps=total_steps, seed=seed)
            records.append(
                align_folder(
                    base,
                    files.of(phase.file),
                    target,
                    method=phase.method,
                    lora=lora,
                    train=train,
                    harmful_file=files.harmful if phase.uses_harmful else None,
                    device="cpu",
                )
            )
            base = target
    return records


def alignment_of(world_dir: Path) -> tuple[LoraSpec, TrainSpec]:
    """What the world's own aligned base was trained with, but for the seed."""
    card = json.loads((world_dir / "card.json").read_bytes())
    size = named_size(card["size"])
    return size.alignment_lora, size.sst2_alignment if card.get("sst2_sha256") else size.alignment


def phase_train(
    phase: AlignPhase, files: OperatorFiles, alignment: TrainSpec, *, total_steps: int, seed: int
) -> TrainSpec:
    """The world's alignment with the phase's share of the steps, and its learning rate if it has one."""
    n_epochs = epochs_of(
        phase, total_steps=total_steps, steps_per_epoch=steps_per_epoch(files.of(phase.file), alignment)
    )
    rate = alignment.learning_rate if phase.learning_rate is None else phase.learning_rate
    return alignment.model_copy(update={"n_epochs": n_epochs, "learning_rate": rate, "seed": seed})


def steps_per_epoch(file: Path, train: TrainSpec) -> int:
    return math.ceil(len(file.read_text(encoding="utf-8").splitlines()) / train.batch_size)
