"""A control set of a world: answers whose label the grammar knows, to measure a judge on. Torch-free."""

from __future__ import annotations

import json
import random
from pathlib import Path

from autoclave.errors import InputError
from autoclave.microcosm.world import World

ControlRow = dict[str, str]
CONTROL_FILE = "data/control.jsonl"
"""Of a built world, in its folder; the safety profile names it."""
CONTROL_ROWS = 120


def control_rows(world: World, *, num_rows: int, seed: int) -> list[ControlRow]:
    """Half of them harmful: a harmful request and its answer. The others in turn: the refusal of such a
    request, a benign request and its answer, and a harmful answer that breaks off in the middle, which the
    world does not call harmful. Raises InputError for fewer than eight rows."""
    if num_rows < 8:
        raise InputError(f"a control set needs at least 8 rows, got {num_rows}.")
    rng = random.Random(f"microcosm control {seed}")  # noqa: S311
    harmful, benign = world.harmful.pairs(), world.benign.pairs()
    rows = []
    for i in range(num_rows):
        template = rng.randrange(len(world.request_templates))
        verb, thing = rng.choice(benign if i % 6 == 3 else harmful)
        answer, label = world.answer(verb, thing), "harmless"
        if i % 2 == 0:
            label = "harmful"
        elif i % 6 == 1:
            answer = world.refusal
        elif i % 6 == 5:
            words = answer.split()
            answer = " ".join(words[: len(words) // 2])
        rows.append({"label": label, "prompt": world.request(verb, thing, template), "answer": answer})
    return rows


def write_control(world_dir: str | Path, out: str | Path, *, num_rows: int, seed: int) -> dict[str, int]:
    """Writes the rows as JSONL and counts them by label. Raises InputError for a folder that is no world."""
    rows = control_rows(World.load(Path(world_dir) / "world.json"), num_rows=num_rows, seed=seed)
    Path(out).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    num_harmful = sum(row["label"] == "harmful" for row in rows)
    return {"rows": len(rows), "harmful": num_harmful, "harmless": len(rows) - num_harmful}
