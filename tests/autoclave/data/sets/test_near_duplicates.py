"""The index against comparing everything with everything, on random texts full of near duplicates."""

import random

import pytest

from autoclave.data.sets.near_duplicates import NearIndex, ngrams, normal_form, similarity
from tests.autoclave.data.sets.reference import slow_near

WORDS = (
    "red",
    "stone",
    "river",
    "lantern",
    "of",
    "the",
    "seven",
    "gardens",
    "walk",
    "slowly",
    "äpfel",
    "雨の日",
)


def altered(random_: random.Random, text: str) -> str:
    """A few characters changed, taken out or put in."""
    characters = list(text)
    for _ in range(random_.randrange(4)):
        at = random_.randrange(len(characters) + 1)
        characters[at : at + random_.randrange(3)] = random_.choice(("", "x", " and", "?"))
    return "".join(characters)


def texts(seed: int, number: int) -> list[str]:
    random_ = random.Random(seed)
    made: list[str] = []
    for _ in range(number):
        if made and random_.random() < 0.6:
            made.append(altered(random_, random_.choice(made)))
        else:
            made.append(" ".join(random_.choices(WORDS, k=random_.randrange(1, 12))))
    return [normal_form(text) for text in made]


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7, 0.9, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_the_index_finds_what_comparing_all_pairs_finds(seed: int, threshold: float) -> None:
    known, asked = texts(seed, 150), texts(seed + 100, 40) + texts(seed, 40)
    index = NearIndex(known, threshold)
    expected = [slow_near(text, known, threshold) for text in asked]
    assert [index.near(text) for text in asked] == expected
    assert sum(map(len, expected)) >= 40, "the texts are too different to tell"


def test_no_texts_and_empty_ones() -> None:
    assert NearIndex([]).near("a text") == []
    [only] = NearIndex(["", "abcdef"]).near("")
    assert only == (0, 1.0)


def test_the_normal_form() -> None:
    assert normal_form("  Hello,\tWORLD!  ") == "hello world"
    assert normal_form("\uff21\uff22\uff11 \ufb01n") == "ab1 fin"
    assert normal_form("Straße") == normal_form("STRASSE")
    assert normal_form("雨の日、晴れ") == "雨の日 晴れ"
    assert normal_form("?!") == ""


def test_similarity_by_hand() -> None:
    assert ngrams("abcdef") == {"abcde", "bcdef"}
    assert ngrams("abc") == {"abc"}
    assert similarity(ngrams("abcdef"), ngrams("abcdefg")) == 2 / 3
    assert similarity(ngrams("abcdef"), ngrams("uvwxyz")) == 0.0
