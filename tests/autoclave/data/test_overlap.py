"""Shared prompts are found whatever their case and spacing, counted, placed by line and never shown."""

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoclave.data.overlap import MAX_PAIRS, refuse_overlap
from autoclave.error_records import decode, encode
from autoclave.errors import DataError, InputError, OverlapError


def write(file: Path, prompts: list[Any]) -> Path:
    """One row per prompt: a user message and an answer, or the messages as given."""
    rows = [
        p if isinstance(p, list) else [{"role": "user", "content": p}, {"role": "assistant", "content": "a"}]
        for p in prompts
    ]
    file.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    return file


def overlap(folder: Path, learned: list[Any], measured: list[Any]) -> OverlapError | None:
    first, second = write(folder / "realign.jsonl", learned), write(folder / "eval.jsonl", measured)
    try:
        refuse_overlap(str(first), second)
    except OverlapError as error:
        return error
    return None


WORDS = st.lists(st.sampled_from(["zap", "zip", "ß", "Éa", "q1"]), min_size=1, max_size=3).map(tuple)
SPACES = st.sampled_from([" ", "  ", "\n", "\t \u00a0", "\u2003"])
CASES = st.sampled_from([str.lower, str.upper, str.title, str])


@st.composite
def spelled(draw: st.DrawFn) -> tuple[tuple[str, ...], str]:
    """Words, and one of the ways to write them."""
    words = draw(WORDS)
    text = draw(CASES)(words[0])
    for word in words[1:]:
        text += draw(SPACES) + draw(CASES)(word)
    return words, draw(st.sampled_from(["", " ", "\n"])) + text + draw(st.sampled_from(["", "  "]))


@given(
    st.lists(spelled(), min_size=1, max_size=8), st.lists(spelled(), min_size=1, max_size=8), st.booleans()
)
def test_exactly_the_shared_prompts_are_found_at_their_first_lines(
    learned: list[tuple[tuple[str, ...], str]], measured: list[tuple[tuple[str, ...], str]], answered: bool
) -> None:
    ours, theirs = [words for words, _ in learned], [words for words, _ in measured]
    shared = [words for n, words in enumerate(theirs) if words in ours and words not in theirs[:n]]
    with tempfile.TemporaryDirectory() as folder:
        rows = [[{"role": "user", "content": text}] if not answered else text for _, text in measured]
        error = overlap(Path(folder), [text for _, text in learned], rows)
    assert (error is None) == (not shared)
    if error is not None:
        assert error.pairs == [(ours.index(words) + 1, theirs.index(words) + 1) for words in shared]
        assert ("1 prompt is" if len(shared) == 1 else f"{len(shared)} prompts are") in str(error)


@given(st.text(min_size=1).filter(lambda text: not any("\ud800" <= c <= "\udfff" for c in text)))
def test_any_prompt_overlaps_with_itself(prompt: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        error = overlap(Path(folder), ["other " + prompt, prompt], [prompt.swapcase() + "!", prompt])
    assert error is not None
    assert (2, 2) in error.pairs


def test_the_last_user_message_is_the_prompt(tmp_path: Path) -> None:
    def dialogue(*texts: str) -> list[dict[str, str]]:
        return [{"role": "user" if n % 2 == 0 else "assistant", "content": t} for n, t in enumerate(texts)]

    assert overlap(tmp_path, [dialogue("same", "x", "one", "y")], [dialogue("same", "x", "two")]) is None
    found = overlap(tmp_path, [dialogue("one", "x", "same", "y")], [dialogue("two", "z", "same")])
    assert found is not None
    parts = [{"role": "user", "content": [{"type": "text", "text": "sa"}, {"type": "text", "text": "me"}]}]
    assert overlap(tmp_path, [parts], ["SAME"]) is not None


def test_rows_without_a_prompt_share_nothing(tmp_path: Path) -> None:
    alone = [{"role": "assistant", "content": "a"}]
    assert overlap(tmp_path, [alone, "q"], [alone, "p"]) is None


def test_many_are_counted_and_the_first_are_placed(tmp_path: Path) -> None:
    secrets = [f"secret {n}" for n in range(25)]
    error = overlap(tmp_path, secrets, ["new", *secrets, *secrets])
    assert error is not None
    assert error.pairs == [(n, n + 1) for n in range(1, MAX_PAIRS + 1)]
    words = str(error)
    assert f"25 prompts are both in {tmp_path}/realign.jsonl and in {tmp_path}/eval.jsonl" in words
    assert "(lines 1 and 2, 2 and 3, " in words
    assert "10 and 11, ...)" in words
    assert "delete them from one of the files" in words
    assert "secret" not in words.replace(str(tmp_path), "")


def test_the_error_crosses_a_process_border(tmp_path: Path) -> None:
    error = overlap(tmp_path, ["a", "b"], ["B"])
    assert isinstance(error, InputError)
    again = decode(encode(error))
    assert isinstance(again, OverlapError)
    assert (str(again), again.pairs) == (str(error), [(2, 1)])


def test_a_broken_line_is_the_usual_data_error(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", ["q"])
    (tmp_path / "b.jsonl").write_text('{"messages": []}\n')
    with pytest.raises(DataError, match=r"b\.jsonl: line 1"):
        refuse_overlap(file, tmp_path / "b.jsonl")
