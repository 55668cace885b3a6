"""Near duplicates the slow way: every text with every other, from the definition."""

from collections.abc import Sequence


def slow_near(text: str, known: Sequence[str], threshold: float) -> list[tuple[int, float]]:
    found = ((number, jaccard(text, other)) for number, other in enumerate(known))
    return [(number, value) for number, value in found if value >= threshold]


def jaccard(first: str, second: str) -> float:
    a, b = grams(first), grams(second)
    return len(a & b) / len(a | b)


def grams(text: str) -> set[str]:
    return {text[i : i + 5] for i in range(len(text) - 4)} or {text}
