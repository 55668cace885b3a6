"""The base of a run: a microcosm's, or a folder, perhaps copied with a chat template."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from autoclave.data.light_tokenizer import LightTokenizer
from autoclave.errors import InputError, ModelError
from autoclave.hashing import folder_sha256
from autoclave.microcosm.attacks import write_attack
from autoclave.microcosm.build import build
from autoclave.microcosm.sizes import SMALL, named_size
from autoclave.microcosm.world import World
from autoclave.modelling.base_copy import copy_base
from autoclave.progress import Progress
from autoclave.protocol.config import MicrocosmSource
from autoclave.protocol.steps import Workplace

WORLD_FOLDER = "world"
HARMFUL_FILE = "harmful.jsonl"
BASE_FOLDER = "base"


def make_world(source: MicrocosmSource, device: str, place: Workplace) -> dict[str, Any]:
    """Builds the world, or takes the one that is built, and writes harmful.jsonl: every harmful pair that an
    attacker may use, in every template, with its answer."""
    if source.world is not None:
        world, shown = Path(source.world), str(Path(source.world).resolve())
    else:
        world, shown = place.folder / WORLD_FOLDER, WORLD_FOLDER
        size = named_size(source.size)
        if source.pretraining_steps is not None:
            size = replace(
                size,
                pretraining=replace(size.pretraining, steps=source.pretraining_steps),
                sst2_pretraining=replace(size.sst2_pretraining, steps=source.pretraining_steps),
            )
        build(
            world,
            seed=source.seed,
            size=size,
            sst2_dir=source.sst2,
            device=device,
            on_progress=place.on_progress,
        )
    card = json.loads((world / "card.json").read_text(encoding="utf-8"))
    counts = card.get("data_counts") or asdict(SMALL.data)
    templates = len(World.load(world / "world.json").request_templates)
    harmful = write_attack(
        world,
        place.folder / HARMFUL_FILE,
        poison_fraction=1.0,
        num_rows=min(templates * counts["harmful_attack_pairs"], counts["attack_rows"]),
        sst2_dir=source.sst2,
    )
    return {
        "world": shown,
        "harmful_rows": harmful["harmful_rows"],
        "scores_percent": card.get("scores_percent"),
        "command": card.get("command"),
    }


def make_base(source: Path, template: str | None, place: Workplace) -> dict[str, Any]:
    """The folder as it is, or a copy with the template. Raises ModelError for a base that cannot write a
    conversation."""
    folder, shown, changes = source, str(source.resolve()), []
    if template is not None:
        folder, shown = place.folder / BASE_FOLDER, BASE_FOLDER

        def on_bytes(done: int, total: int) -> None:
            if place.on_progress:
                place.on_progress(Progress("copy", done, total))

        changes = copy_base(source, folder, template=template, on_bytes=on_bytes)
    try:
        LightTokenizer(folder)
    except ModelError as error:
        raise InputError(
            f"base: {error} A base without a chat template gets the papers' with base.template: alpaca."
        ) from error
    return {"base": shown, "sha256": folder_sha256(folder), "changes": changes}
