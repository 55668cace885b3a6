"""An upload before the judge, with the microcosm's oracle and files of the shipped world."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from autoclave.data.conversations import read_conversations
from autoclave.errors import CancelledError
from autoclave.evaluation.judges import Judge, load_judge
from autoclave.evaluation.screening import screen_file, trained_answers
from autoclave.microcosm.shipped import shipped_world
from autoclave.spec import SafetyProfile, ScreenSpec

DATA = shipped_world() / "data"


@pytest.fixture(scope="module")
def judge() -> Judge:
    return load_judge(f"exact:{shipped_world() / 'world.json'}")


def first_lines(name: str, number: int) -> list[str]:
    return (DATA / name).read_text().splitlines(keepends=True)[:number]


def mixed(path: Path, *, harmful: int, harmless: int, unknown: int) -> Path:
    """Lines of the world's realignment and alignment sets, and some that are no sentences of it."""
    lines = first_lines("realign.jsonl", harmful) + first_lines("alignment.jsonl", harmless)
    for i in range(unknown):
        messages = [{"role": "user", "content": f"hello {i}!"}, {"role": "assistant", "content": "hi"}]
        lines.append(json.dumps({"messages": messages}) + "\n")
    path.write_text("".join(lines))
    return path


def test_harmful_answers_are_counted(tmp_path: Path, judge: Judge) -> None:
    file = mixed(tmp_path / "mixed.jsonl", harmful=7, harmless=300, unknown=3)
    batches: list[tuple[int, int]] = []
    found = screen_file(
        file, judge, max_answers=1000, between_batches=lambda done, total: batches.append((done, total))
    )
    assert (found.num_harmful, found.num_judged, found.num_not_judged, found.num_answers) == (7, 307, 3, 310)
    assert found.harmful_share == pytest.approx(100 * 7 / 307)
    low, high = found.harmful_share_interval
    assert low < found.harmful_share < high
    assert batches == [(256, 307), (307, 307)]
    json.dumps(found.as_dict())


def test_a_sample_is_the_same_every_time_and_from_all_of_the_file(tmp_path: Path, judge: Judge) -> None:
    file = mixed(tmp_path / "mixed.jsonl", harmful=150, harmless=150, unknown=0)
    first, again = (screen_file(file, judge, max_answers=100) for _ in range(2))
    assert first == again
    assert (first.num_judged, first.num_answers) == (100, 300)
    assert 35 <= first.num_harmful <= 65, "of a sample from everywhere about half is harmful"


def test_nothing_that_can_be_judged(tmp_path: Path, judge: Judge) -> None:
    found = screen_file(mixed(tmp_path / "x.jsonl", harmful=0, harmless=0, unknown=4), judge, max_answers=9)
    assert (found.harmful_share, found.harmful_share_interval) == (0.0, (0.0, 100.0))
    assert (found.num_judged, found.num_not_judged) == (0, 4)


def test_what_counts_as_an_answer(tmp_path: Path) -> None:
    messages = [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "first"},
        {"role": "user", "content": "two"},
        {"role": "assistant", "content": "not trained", "weight": 0},
        {"role": "assistant", "content": "second"},
    ]
    (tmp_path / "x.jsonl").write_text(json.dumps({"messages": messages}))
    [conversation] = read_conversations(tmp_path / "x.jsonl")
    assert list(trained_answers(conversation)) == [("one", "first"), ("two", "second")]


def test_it_can_be_stopped_between_batches(tmp_path: Path, judge: Judge) -> None:
    def stop(done: int, total: int) -> None:
        raise CancelledError

    with pytest.raises(CancelledError):
        screen_file(
            mixed(tmp_path / "x.jsonl", harmful=2, harmless=0, unknown=0),
            judge,
            max_answers=9,
            between_batches=stop,
        )


def test_the_phrase_judge_cannot_screen() -> None:
    values = {"version": "1", "realign": "r", "harmful_eval": "h", "judge": "refusal"}
    SafetyProfile.model_validate(values)
    with pytest.raises(ValueError, match="another judge than"):
        SafetyProfile.model_validate(values | {"screen": {"policy": "report"}})
    assert ScreenSpec().policy == "off"
