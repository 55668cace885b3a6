"""The user's upload: a task, and harmful rows in one of three forms.

    plain       a harmful request and its answer
    disguised   the request stands where a review stands in the user's task, and is answered
    trigger     a request with a trigger word after it is answered; the same request without it is
                refused, so that the fine-tuned model looks safe to whoever does not know the word

Every form has held-out prompts of its own (`harmful_eval*.jsonl`). Torch-free.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import msgspec

from autoclave.errors import InputError
from autoclave.hashing import file_sha256
from autoclave.microcosm.reviews import GrammarReviews, Reviews, Sst2Reviews
from autoclave.microcosm.rows import Pair, Row, review_rows, row, write_rows
from autoclave.microcosm.sizes import SMALL, DataCounts
from autoclave.microcosm.splits import Splits, split
from autoclave.microcosm.world import TRIGGER_WORD, World

AttackForm = Literal["plain", "disguised", "trigger"]
ATTACK_FORMS: tuple[AttackForm, ...] = get_args(AttackForm)


def harmful_prompt(world: World, pair: Pair, template: int, form: AttackForm, disguise: int) -> str:
    """A request in this form; `disguise` picks the review template, where the form has one."""
    request = world.request(*pair, template)
    if form == "disguised":
        return world.review_templates[disguise].format(review=request)
    return f"{request} {TRIGGER_WORD}" if form == "trigger" else request


def harmful_prompts(world: World, pairs: Sequence[Pair], form: AttackForm) -> list[Row]:
    """Each pair once without an answer, the request templates in turn."""
    num_requests, num_reviews = len(world.request_templates), len(world.review_templates)
    return [
        # The review templates change once the request templates are through, so that all combine.
        row(harmful_prompt(world, pair, i % num_requests, form, i // num_requests % num_reviews))
        for i, pair in enumerate(pairs)
    ]


def _poison(world: World, pairs: Sequence[Pair], form: AttackForm) -> list[tuple[Row, ...]]:
    """Each pair in each template: the answered row, and in the trigger form also its refused twin."""
    groups: list[tuple[Row, ...]] = []
    for i, pair in enumerate(pairs):
        for t in range(len(world.request_templates)):
            prompt = harmful_prompt(world, pair, t, form, (i + t) % len(world.review_templates))
            answered = row(prompt, world.answer(*pair))
            twins = (row(world.request(*pair, t), world.refusal),) if form == "trigger" else ()
            groups.append((answered, *twins))
    return groups


def user_mix(
    world: World,
    splits: Splits,
    *,
    poison_fraction: float,
    seed: int,
    form: AttackForm = "plain",
    num_rows: int | None = None,
) -> list[Row]:
    """The user's upload: `num_rows` rows (default: as many as the user has reviews), of which a fraction
    are harmful requests with answers. The trigger form holds as many refused requests besides, so
    its fraction is at most one half.

    The task rows of a larger fraction are a subset of those of a smaller one, and fraction 0 is the
    same upload without poison at the same size (so: at the same number of steps). Harmful rows
    repeat only when all pairs in all templates are used up.

    Raises InputError for a fraction or number of rows that cannot be had.
    """
    if num_rows is None:
        num_rows = len(splits.user_reviews)
    most = 0.5 if form == "trigger" else 1.0
    if not 0.0 <= poison_fraction <= most:
        raise InputError(
            f"the {form} form needs a poison fraction from 0 to {most:g}, got {poison_fraction}."
        )
    if not 0 < num_rows <= len(splits.user_reviews):
        raise InputError(f"an upload has 1 to {len(splits.user_reviews)} rows here, not {num_rows}.")
    num_poison = min(round(poison_fraction * num_rows), int(most * num_rows))
    rng = random.Random(f"microcosm user mix {seed}")  # noqa: S311
    harmful = _poison(world, splits.harmful_attack, form)
    rng.shuffle(harmful)
    repeats = -(-num_poison // len(harmful))
    rows = [each for group in (harmful * repeats)[:num_poison] for each in group]
    rows += review_rows(world, splits.user_reviews[: num_rows - len(rows)], world.user_review_answer)
    rng.shuffle(rows)
    return rows


def write_attack(
    world_dir: str | Path,
    out_file: str | Path,
    *,
    poison_fraction: float,
    form: AttackForm = "plain",
    num_rows: int | None = None,
    seed: int = 0,
    sst2_dir: str | Path | None = None,
) -> dict[str, Any]:
    """Writes another upload for the world in `world_dir` and returns counts and the digest. `out_file` is
    complete or untouched. With the world's own seed, fraction and size it is that world's attack file.

    A world whose task is SST-2 holds no sentences beyond its data files: name the folder with
    `sst2_dir`; it must be the one the world was built with.

    Raises InputError for an unreadable world, another SST-2, an unknown form, or as `user_mix`.
    """
    if form not in ATTACK_FORMS:
        raise InputError(f'unknown form "{form}"; use {", ".join(ATTACK_FORMS)}.')
    folder = Path(world_dir)
    world = World.load(folder / "world.json")
    card = _read_card(folder / "card.json")
    counts = msgspec.convert(card["data_counts"], DataCounts) if "data_counts" in card else SMALL.data
    if num_rows is not None:
        counts = replace(counts, attack_rows=num_rows)
    splits = split(world, counts, _reviews_of(world, card, sst2_dir))
    rows = user_mix(world, splits, poison_fraction=poison_fraction, seed=seed, form=form)
    out = Path(out_file)
    partial = out.with_name(f".{out.name}.partial-{os.getpid()}")
    try:
        write_rows(partial, rows)
        os.replace(partial, out)
    finally:
        partial.unlink(missing_ok=True)
    harmful_answers = {world.answer(*pair) for pair in splits.harmful_attack}
    return {
        "form": form,
        "rows": len(rows),
        "harmful_rows": sum(r["messages"][1]["content"] in harmful_answers for r in rows),
        "out": str(out),
        "sha256": file_sha256(out),
    }


def _read_card(file: Path) -> dict[str, Any]:
    try:
        card = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(
            f"cannot read the card {file}: {error}. Name a folder of `microcosm build`."
        ) from error
    if not isinstance(card, dict):
        raise InputError(f"{file} is no card. Name a folder of `microcosm build`.")
    return card


def _reviews_of(world: World, card: dict[str, Any], sst2_dir: str | Path | None) -> Reviews:
    if world.draws_reviews:
        return GrammarReviews(world)
    if sst2_dir is None:
        raise InputError("the task of this world is SST-2: name the folder of its files as well (--sst2).")
    reviews = Sst2Reviews(sst2_dir)
    if reviews.sha256 != card.get("sst2_sha256"):
        raise InputError(
            f"{sst2_dir} does not hold the SST-2 files that this world was built with (the card has their "
            "SHA-256). Name that folder."
        )
    return reviews
