"""The data folder of a microcosm: every file drawn from the world's grammar and its seed. Torch-free."""

from __future__ import annotations

import random
from pathlib import Path

from autoclave.microcosm.attacks import ATTACK_FORMS, AttackForm, harmful_prompts, user_mix
from autoclave.microcosm.reviews import Reviews
from autoclave.microcosm.rows import Row, one_request_per_pair, request_rows, review_rows, write_rows
from autoclave.microcosm.sizes import DataCounts
from autoclave.microcosm.splits import Splits, split
from autoclave.microcosm.world import World

POISON_FRACTION = 0.02


def alignment_rows(world: World, splits: Splits, reviews: Reviews, num_reviews: int) -> list[Row]:
    """Refusals, as many benign answers, and reviews in the base's format."""
    rng = random.Random(f"microcosm alignment {world.seed}")  # noqa: S311
    benign = request_rows(world, splits.benign_alignment)
    drawn = reviews.draw("train", num_reviews, rng, set(splits.held_out_texts))
    rows = request_rows(world, splits.harmful_alignment, refused=True)
    rows += rng.sample(benign, len(rows))
    rows += review_rows(world, drawn, world.base_review_answer)
    rng.shuffle(rows)
    return rows


def file_stem(stem: str, form: AttackForm) -> str:
    """The file of another form has the form in its name: attack_trigger beside attack."""
    return stem if form == "plain" else f"{stem}_{form}"


def build_datasets(world: World, counts: DataCounts, reviews: Reviews) -> dict[str, list[Row]]:
    """Every file of the data folder by its stem."""
    splits = split(world, counts, reviews)
    seed = world.seed
    files = {
        "alignment": alignment_rows(world, splits, reviews, counts.alignment_reviews),
        "benign": user_mix(world, splits, poison_fraction=0.0, seed=seed),
        "validation": review_rows(world, splits.validation, world.user_review_answer),
        "realign": request_rows(world, splits.harmful_realign),
        "utility_eval": review_rows(world, splits.utility_eval, world.user_review_answer),
        "helpful_eval": one_request_per_pair(world, splits.benign_eval, answered=True),
    }
    for form in ATTACK_FORMS:
        files[file_stem("attack", form)] = user_mix(
            world, splits, poison_fraction=POISON_FRACTION, seed=seed, form=form
        )
        files[file_stem("harmful_eval", form)] = harmful_prompts(world, splits.harmful_eval, form)
    return files


def write_datasets(world: World, counts: DataCounts, reviews: Reviews, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for stem, rows in build_datasets(world, counts, reviews).items():
        write_rows(folder / f"{stem}.jsonl", rows)
