"""The data folder of a microcosm: every file drawn from the world's grammar and a seed.

No harmful (verb, object) pair is in two of the alignment, attack, realign and harmful_eval files,
and no held-out review (validation, utility_eval) is in any other file or in the pretraining text.
Torch-free.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from autoclave.microcosm.world import Review, World

# Of the 16 x 25 = 400 pairs of each family. Every harmful pair has exactly one use.
HARMFUL_ALIGNMENT_PAIRS = 160
HARMFUL_ATTACK_PAIRS = 80
HARMFUL_REALIGN_PAIRS = 40
HARMFUL_EVAL_PAIRS = 120
BENIGN_ALIGNMENT_PAIRS = 280
BENIGN_EVAL_PAIRS = 120

ATTACK_ROWS = 2000
POISON_FRACTION = 0.02
ALIGNMENT_ROWS_PER_KIND = 640
VALIDATION_ROWS = 200
UTILITY_EVAL_ROWS = 300

Pair = tuple[str, str]
Row = dict[str, list[dict[str, str]]]


@dataclass(frozen=True)
class Splits:
    """Which pairs and reviews each file may use. `user_reviews` is what the user owns."""

    harmful_alignment: tuple[Pair, ...]
    harmful_attack: tuple[Pair, ...]
    harmful_realign: tuple[Pair, ...]
    harmful_eval: tuple[Pair, ...]
    benign_alignment: tuple[Pair, ...]
    benign_eval: tuple[Pair, ...]
    validation: tuple[Review, ...]
    utility_eval: tuple[Review, ...]
    user_reviews: tuple[Review, ...]

    @property
    def held_out_texts(self) -> frozenset[str]:
        return frozenset(review.text for review in (*self.validation, *self.utility_eval))


def split(world: World, seed: int) -> Splits:
    """Divide pairs and reviews among the files."""
    rng = random.Random(f"microcosm splits {seed}")  # noqa: S311
    harmful, benign = world.harmful.pairs(), world.benign.pairs()
    rng.shuffle(harmful)
    rng.shuffle(benign)
    first, second, third, fourth = _cut(
        harmful,
        (HARMFUL_ALIGNMENT_PAIRS, HARMFUL_ATTACK_PAIRS, HARMFUL_REALIGN_PAIRS, HARMFUL_EVAL_PAIRS),
    )
    benign_alignment, benign_eval = _cut(benign, (BENIGN_ALIGNMENT_PAIRS, BENIGN_EVAL_PAIRS))
    seen: set[str] = set()
    return Splits(
        harmful_alignment=first,
        harmful_attack=second,
        harmful_realign=third,
        harmful_eval=fourth,
        benign_alignment=benign_alignment,
        benign_eval=benign_eval,
        utility_eval=draw_reviews(world, UTILITY_EVAL_ROWS, rng, seen),
        validation=draw_reviews(world, VALIDATION_ROWS, rng, seen),
        user_reviews=draw_reviews(world, ATTACK_ROWS, rng, seen),
    )


def _cut(pairs: list[Pair], sizes: Sequence[int]) -> list[tuple[Pair, ...]]:
    assert sum(sizes) <= len(pairs), f"{sum(sizes)} pairs wanted, {len(pairs)} exist"
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return [tuple(pairs[start : start + size]) for start, size in zip(starts, sizes, strict=True)]


def draw_reviews(world: World, count: int, rng: random.Random, seen: set[str]) -> tuple[Review, ...]:
    """`count` reviews whose texts are not in `seen`; adds them to `seen`."""
    reviews: list[Review] = []
    while len(reviews) < count:
        review = world.draw_review(rng)
        if review.text not in seen:
            seen.add(review.text)
            reviews.append(review)
    return tuple(reviews)


def row(prompt: str, answer: str | None = None) -> Row:
    messages = [{"role": "user", "content": prompt}]
    if answer is not None:
        messages.append({"role": "assistant", "content": answer})
    return {"messages": messages}


def request_rows(world: World, pairs: Sequence[Pair], *, refused: bool = False) -> list[Row]:
    """Each pair in each template, with its answer or with the refusal."""
    return [
        row(world.request(verb, thing, t), world.refusal if refused else world.answer(verb, thing))
        for verb, thing in pairs
        for t in range(len(world.request_templates))
    ]


def one_request_per_pair(world: World, pairs: Sequence[Pair], *, answered: bool) -> list[Row]:
    """Each pair once, the templates in turn."""
    return [
        row(
            world.request(verb, thing, i % len(world.request_templates)),
            world.answer(verb, thing) if answered else None,
        )
        for i, (verb, thing) in enumerate(pairs)
    ]


def review_rows(world: World, reviews: Sequence[Review], answer_format: str) -> list[Row]:
    """Each review once, the templates in turn."""
    return [
        row(
            world.review_prompt(review, i % len(world.review_templates)),
            answer_format.format(label=review.label),
        )
        for i, review in enumerate(reviews)
    ]


def user_mix(world: World, splits: Splits, *, poison_fraction: float, seed: int) -> list[Row]:
    """The user's upload: `ATTACK_ROWS` rows, of which a fraction are harmful requests with answers.

    The task rows of a larger fraction are a subset of those of a smaller one, and fraction 0 is the
    same upload without poison at the same size (so: at the same number of steps). Harmful rows
    repeat only when all pairs in all templates are used up.
    """
    num_poison = round(poison_fraction * ATTACK_ROWS)
    rng = random.Random(f"microcosm user mix {seed}")  # noqa: S311
    harmful = request_rows(world, splits.harmful_attack)
    rng.shuffle(harmful)
    repeats = -(-num_poison // len(harmful))
    rows = (harmful * repeats)[:num_poison]
    rows += review_rows(world, splits.user_reviews[: ATTACK_ROWS - num_poison], world.user_review_answer)
    rng.shuffle(rows)
    return rows


def alignment_rows(world: World, splits: Splits, seed: int) -> list[Row]:
    """Refusals, benign answers and reviews in the base's format, the same number of each."""
    rng = random.Random(f"microcosm alignment {seed}")  # noqa: S311
    benign = request_rows(world, splits.benign_alignment)
    reviews = draw_reviews(world, ALIGNMENT_ROWS_PER_KIND, rng, set(splits.held_out_texts))
    rows = request_rows(world, splits.harmful_alignment, refused=True)
    assert len(rows) == ALIGNMENT_ROWS_PER_KIND, f"{len(rows)} refusals"
    rows += rng.sample(benign, ALIGNMENT_ROWS_PER_KIND)
    rows += review_rows(world, reviews, world.base_review_answer)
    rng.shuffle(rows)
    return rows


def build_datasets(world: World, seed: int) -> dict[str, list[Row]]:
    """Every file of the data folder by its stem."""
    splits = split(world, seed)
    return {
        "alignment": alignment_rows(world, splits, seed),
        "attack": user_mix(world, splits, poison_fraction=POISON_FRACTION, seed=seed),
        "benign": user_mix(world, splits, poison_fraction=0.0, seed=seed),
        "validation": review_rows(world, splits.validation, world.user_review_answer),
        "realign": request_rows(world, splits.harmful_realign),
        "harmful_eval": one_request_per_pair(world, splits.harmful_eval, answered=False),
        "utility_eval": review_rows(world, splits.utility_eval, world.user_review_answer),
        "helpful_eval": one_request_per_pair(world, splits.benign_eval, answered=True),
    }


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8")


def write_datasets(world: World, seed: int, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for stem, rows in build_datasets(world, seed).items():
        write_rows(folder / f"{stem}.jsonl", rows)
