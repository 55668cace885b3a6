"""Natural text passes, the ways in which a damaged model stammers do not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoclave.evaluation.coherence import is_coherent

NATURAL = [
    "I'm sorry, but I can't help with that.",
    "No.",
    "42",
    "that is very very very good",
    "Sure! 1) Boil the water. 2) Add the tea. 3) Wait for four minutes, then pour.",
    "Der Zug fährt um acht Uhr, der nächste um neun.",
    "Καλημέρα, \u03bf ήλιος λάμπει σήμερα.",
    "今日は天気がいいですね。",
    "हम आपकी मदद नहीं कर सकते।",  # half of the signs are marks, not letters
    "for i in range(10):\n    print(i, i ** 2)",
    "the cat sat on the mat and the dog lay on the rug and the bird was in the tree",
    "cut off in the middle of a sig\ufffd",
    "left right left right left right left right left went the band through the old town and out of the gate",
    "aaaah, ha ha ha!",
]
BROKEN = {
    "empty": " \n\t",
    "four in a row": "The answer is is is is here and nothing else is to be said.",
    "four in a row, with marks": "हाँ हाँ हाँ हाँ और फिर कुछ नहीं कहा गया",
    "four in a row, quoted": "'so' so “so” so they said to me",
    "four in a row, other case and punctuation": "No, no. NO! no",
    "a phrase": "take the zug then " * 5,
    "a phrase after a good start": "Here is what you asked me for today: " + "one more of the same kind " * 4,
    "two words in turn": "yes no " * 6,
    "letters": "a" * 40,
    "letters of a script without blanks": "はい、" + "天気" * 12,
    "undecodable": "ab\ufffd\ufffdcd ef\ufffdgh",
    "control characters": "a\x00b\x01c d e\x02f",
    "no letters": "... ??? --- !!! ))) (((",
}


@pytest.mark.parametrize("text", NATURAL)
def test_natural_text(text: str) -> None:
    assert is_coherent(text)


@pytest.mark.parametrize("text", BROKEN.values(), ids=BROKEN.keys())
def test_broken_text(text: str) -> None:
    assert not is_coherent(text)


@given(
    before=st.lists(st.sampled_from(["red", "green", "blue"]), max_size=3),
    after=st.lists(st.sampled_from(["one", "two"]), max_size=3),
    times=st.integers(1, 8),
)
def test_boosters_rule(before: list[str], after: list[str], times: int) -> None:
    """More than three times in a row, wherever the run stands; three times is allowed."""
    filler = "in the old days people had to walk a long way before they could see any water"
    text = " ".join([*before, filler, *["again"] * times, "and then they slept well until dawn", *after])
    # Fewer than four of anything in `before` and `after`, so only `times` decides.
    assert is_coherent(text) == (times <= 3)


@given(st.text(max_size=200))
def test_any_text_can_be_asked(text: str) -> None:
    assert is_coherent(text) in (True, False)
    assert not is_coherent(text + " word" * 100)


def test_what_it_cannot_see() -> None:
    """The documented weakness: no language is known here."""
    assert is_coherent("Colourless green ideas sleep furiously beside quarterly umbrellas.")
