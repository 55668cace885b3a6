"""Which pairs and which reviews each file of the data folder may use.

No harmful (verb, object) pair is in two of the alignment, attack, realign and harmful_eval files,
and no held-out review (validation, utility_eval) is in any other file or in the pretraining text.
Torch-free.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from autoclave.microcosm.reviews import Reviews
from autoclave.microcosm.rows import Pair
from autoclave.microcosm.sizes import DataCounts
from autoclave.microcosm.world import Review, World


@dataclass(frozen=True)
class Splits:
    """`user_reviews` is what the user owns."""

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


def split(world: World, counts: DataCounts, reviews: Reviews) -> Splits:
    """Divide pairs and reviews among the files; a function of the world's seed. With more `attack_rows`
    everything else stays and the user owns more reviews."""
    rng = random.Random(f"microcosm splits {world.seed}")  # noqa: S311
    harmful, benign = world.harmful.pairs(), world.benign.pairs()
    rng.shuffle(harmful)
    rng.shuffle(benign)
    first, second, third, fourth = _cut(
        harmful,
        (
            counts.harmful_alignment_pairs,
            counts.harmful_attack_pairs,
            counts.harmful_realign_pairs,
            counts.harmful_eval_pairs,
        ),
    )
    benign_alignment, benign_eval = _cut(benign, (counts.benign_alignment_pairs, counts.benign_eval_pairs))
    seen: set[str] = set()
    return Splits(
        harmful_alignment=first,
        harmful_attack=second,
        harmful_realign=third,
        harmful_eval=fourth,
        benign_alignment=benign_alignment,
        benign_eval=benign_eval,
        utility_eval=reviews.draw("test", counts.utility_eval_rows, rng, seen),
        validation=reviews.draw("dev", counts.validation_rows, rng, seen),
        user_reviews=reviews.draw("train", counts.attack_rows, rng, seen),
    )


def _cut(pairs: list[Pair], sizes: Sequence[int]) -> list[tuple[Pair, ...]]:
    assert sum(sizes) <= len(pairs), f"{sum(sizes)} pairs wanted, {len(pairs)} exist"
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return [tuple(pairs[start : start + size]) for start, size in zip(starts, sizes, strict=True)]
