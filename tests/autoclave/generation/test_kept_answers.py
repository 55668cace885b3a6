"""Kept answers: nothing is asked twice, nothing foreign is taken, and a crash costs one line."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from autoclave.errors import InputError
from autoclave.generation.answers import Answer, OnAnswer, Prompt
from autoclave.generation.kept_answers import KeptAnswers

PROMPTS: list[Any] = [[{"role": "user", "content": text}] for text in ("a", "b", "a", "c")]


class Counting:
    """Answers with the prompt, and fails after so many."""

    name = "counting"

    def __init__(self, most: int = 100) -> None:
        self.asked: list[str] = []
        self._most = most

    def answer(
        self,
        prompts: Sequence[Prompt],
        *,
        max_new_tokens: int,
        on_answer: OnAnswer | None = None,
        on_progress: Any = None,
    ) -> list[Answer]:
        answers = []
        for place, prompt in enumerate(prompts):
            if len(self.asked) >= self._most:
                raise RuntimeError("the machine fell over")
            self.asked.append(prompt[0]["content"])
            answers.append(Answer(prompt[0]["content"].upper(), 1, cut_off=False))
            if on_answer:
                on_answer(place, answers[-1])
        return answers


def texts(answers: list[Answer]) -> list[str]:
    return [answer.text for answer in answers]


def test_a_run_that_fell_over_goes_on(tmp_path: Path) -> None:
    file = tmp_path / "new" / "kept.jsonl"
    first, second = Counting(most=1), Counting()
    with pytest.raises(RuntimeError, match="fell over"):
        KeptAnswers(first, file, of={"base": "1"}).answer(PROMPTS, max_new_tokens=4)
    kept = KeptAnswers(second, file, of={"base": "1"})
    seen: list[int] = []
    answers = kept.answer(PROMPTS, max_new_tokens=4, on_answer=lambda place, _: seen.append(place))
    assert texts(answers) == ["A", "B", "A", "C"]
    assert (first.asked, second.asked) == (["a"], ["b", "c"])
    assert kept.num_resumed == 2
    assert seen == [0, 1, 2, 3]
    assert texts(kept.answer(PROMPTS, max_new_tokens=4)) == ["A", "B", "A", "C"]
    assert (second.asked, kept.num_resumed) == (["b", "c"], 4)


def test_a_torn_line_is_asked_again(tmp_path: Path) -> None:
    file = tmp_path / "kept.jsonl"
    KeptAnswers(Counting(), file, of={}).answer(PROMPTS, max_new_tokens=4)
    whole = file.read_bytes()
    for cut in (1, len(whole) // 2, len(whole) - 1, len(whole) - 10):
        file.write_bytes(whole[:cut])
        inner = Counting()
        assert texts(KeptAnswers(inner, file, of={}).answer(PROMPTS, max_new_tokens=4)) == [
            "A",
            "B",
            "A",
            "C",
        ]
        assert inner.asked == ["a", "b", "c"][3 - len(inner.asked) :]
        assert inner.asked
        assert file.read_bytes().count(b"\n") == 4


@pytest.mark.parametrize(
    ("of", "most", "words"),
    [
        ({"base": "2"}, 4, "base differs"),
        ({"base": "1"}, 5, "max_new_tokens differs"),
        ({}, 4, "base differs"),
    ],
)
def test_answers_of_something_else(tmp_path: Path, of: dict[str, str], most: int, words: str) -> None:
    file = tmp_path / "kept.jsonl"
    KeptAnswers(Counting(), file, of={"base": "1"}).answer(PROMPTS, max_new_tokens=4)
    inner = Counting()
    with pytest.raises(InputError, match=words):
        KeptAnswers(inner, file, of=of).answer(PROMPTS, max_new_tokens=most)
    assert inner.asked == []


def test_another_file(tmp_path: Path) -> None:
    file = tmp_path / "kept.jsonl"
    file.write_text("something\nelse\n")
    with pytest.raises(InputError, match="no file of kept answers"):
        KeptAnswers(Counting(), file, of={}).answer(PROMPTS, max_new_tokens=4)
