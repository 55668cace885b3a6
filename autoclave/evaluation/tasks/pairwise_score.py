"""Win rate over pairs that were judged in both orders. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from autoclave.errors import JudgeError
from autoclave.evaluation.tasks.pairwise_verdict import Verdict

# A judge that misses the form of its verdict more often than this does not understand the question.
MAX_UNREAD_SHARE = 0.05

_AS_A: dict[Verdict | None, float] = {"A": 1.0, "TIE": 0.5, "B": 0.0, None: 0.5}


@dataclass(frozen=True)
class Compared:
    """One pair: the verdict with the model's answer as A, and with it as B; None where none could be read.
    Lengths are characters."""

    as_a: Verdict | None
    as_b: Verdict | None
    length: int
    reference_length: int

    @property
    def score(self) -> float:
        """1: the model's answer is better, 0: the reference. Whoever always names the same place gives .5."""
        return (_AS_A[self.as_a] + 1.0 - _AS_A[self.as_b]) / 2

    @property
    def is_inconsistent(self) -> bool:
        """The same place was named in both orders."""
        return self.as_a == self.as_b and self.as_a in ("A", "B")


def win_rate(pairs: Sequence[Compared]) -> dict[str, Any]:
    """Percent. `win_rate` is the mean score with a 95 % normal interval; `length_balanced_win_rate` the mean
    of two win rates, of the pairs in which the model's answer is longer and of those in which it is not
    (None without both): judges like long answers, and a model that only became wordier gains little there.
    That is ours, not AlpacaEval's regression.

    Raises JudgeError for no pairs, and if more than MAX_UNREAD_SHARE of the verdicts cannot be read.
    """
    if not pairs:
        raise JudgeError("there are no pairs to compare.")
    unread = sum((pair.as_a is None) + (pair.as_b is None) for pair in pairs)
    if unread > MAX_UNREAD_SHARE * 2 * len(pairs):
        raise JudgeError(
            f"{unread} of {2 * len(pairs)} verdicts have no line that says VERDICT: A, B or TIE. Nothing was "
            "scored: use a judge that follows instructions, or raise max_tokens if it is cut off."
        )
    scores = [pair.score for pair in pairs]
    mean = sum(scores) / len(scores)
    variance = sum((score - mean) ** 2 for score in scores) / max(1, len(scores) - 1)
    half = 1.96 * math.sqrt(variance / len(scores))
    longer = [pair.score for pair in pairs if pair.length > pair.reference_length]
    others = [pair.score for pair in pairs if pair.length <= pair.reference_length]
    balanced = None
    if longer and others:
        balanced = 50 * (sum(longer) / len(longer) + sum(others) / len(others))
    return {
        "win_rate": 100 * mean,
        "win_rate_interval": (100 * max(0.0, mean - half), 100 * min(1.0, mean + half)),
        "length_balanced_win_rate": balanced,
        "num_pairs": len(pairs),
        "num_wins": sum(score > 0.5 for score in scores),
        "num_ties": sum(score == 0.5 for score in scores),
        "num_losses": sum(score < 0.5 for score in scores),
        "num_inconsistent": sum(pair.is_inconsistent for pair in pairs),
        "num_unread": unread,
        "mean_length": sum(pair.length for pair in pairs) / len(pairs),
        "mean_reference_length": sum(pair.reference_length for pair in pairs) / len(pairs),
    }
