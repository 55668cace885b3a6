"""Prompts that are nearly the same: Jaccard similarity of their character 5-grams.

Exact, not estimated: prefix filtering (Bayardo, Ma and Srikant, WWW 2007) finds every pair at or above the
threshold. With all n-grams in one order, rarest first, two sets of sizes m and n with similarity t or more
share an entry among the first m - ceil(t m) + 1 and n - ceil(t n) + 1 of them, so only prompts that share
such a rare entry are compared. Characters and not words, so that it works for languages without spaces and
sees an altered ending. Finds no paraphrases.
"""

from __future__ import annotations

import math
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import NamedTuple

NGRAM_CHARACTERS = 5
DEFAULT_THRESHOLD = 0.7
_ROUNDING = 1e-9


class Near(NamedTuple):
    """`number` counts the texts of the index from 0, `similarity` is 0 to 1."""

    number: int
    similarity: float


def normal_form(text: str) -> str:
    """Compatibility forms joined, case folded, and only letters and digits with single spaces between."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join("".join(c if c.isalnum() else " " for c in folded).split())


def ngrams(normal: str) -> frozenset[str]:
    """Of a normal form; one that is shorter than an n-gram is its own only one."""
    last = max(len(normal) - NGRAM_CHARACTERS, 0)
    return frozenset(normal[start : start + NGRAM_CHARACTERS] for start in range(last + 1))


def similarity(first: frozenset[str], second: frozenset[str]) -> float:
    shared = len(first & second)
    return shared / (len(first) + len(second) - shared)


class NearIndex:
    """Looks up which of `texts` (normal forms) are near another one. Raises nothing."""

    def __init__(self, texts: Sequence[str], threshold: float = DEFAULT_THRESHOLD) -> None:
        assert 0.0 < threshold <= 1.0, threshold
        self._threshold = threshold
        self._grams = [ngrams(text) for text in texts]
        self._frequency = Counter(gram for grams in self._grams for gram in grams)
        self._holders: dict[str, list[int]] = defaultdict(list)
        for index, grams in enumerate(self._grams):
            for gram in self._prefix(grams):
                self._holders[gram].append(index)

    def near(self, text: str) -> list[Near]:
        """All at or above the threshold, in the order of the texts; `text` itself too, if it is there."""
        grams = ngrams(text)
        candidates = {index for gram in self._prefix(grams) for index in self._holders.get(gram, ())}
        found = (Near(index, similarity(grams, self._grams[index])) for index in sorted(candidates))
        return [near for near in found if near.similarity >= self._threshold]

    def _prefix(self, grams: frozenset[str]) -> list[str]:
        # One that no text of the index has is the rarest: it stands first and finds nothing.
        ordered = sorted(grams, key=lambda gram: (self._frequency[gram], gram))
        return ordered[: len(ordered) - math.ceil(self._threshold * len(ordered) - _ROUNDING) + 1]
