"""Answers that a later attempt takes over: only its own, only whole, and only for the same weights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from autoclave.generation.answers import Answer, OnAnswer, Prompt
from service.storage import Storage, StorageUnavailableError
from workers.kept_answers import StoredAnswers

PROMPTS: list[Any] = [[{"role": "user", "content": text}] for text in ("a", "b")]
ANSWERS = [Answer("A", 1, cut_off=False), Answer("B b", 2, cut_off=True)]
KEY = b"k" * 32


class Counting:
    name = "counting"

    def __init__(self) -> None:
        self.calls = 0

    def answer(
        self,
        prompts: Sequence[Prompt],
        *,
        max_new_tokens: int,
        on_answer: OnAnswer | None = None,
        on_progress: Any = None,
    ) -> list[Answer]:
        self.calls += 1
        return ANSWERS[: len(prompts)]


def calls(
    storage: Storage, *, key: bytes = KEY, prompts: list[Any] = PROMPTS, most: int = 4, **of: Any
) -> int:
    """How often the generator behind is asked."""
    inner = Counting()
    stored = StoredAnswers(inner, storage, "private/ftjob-1/answers", key=key, of={"adapter": "1", **of})
    seen: list[int] = []
    answers = stored.answer(prompts, max_new_tokens=most, on_answer=lambda place, _: seen.append(place))
    assert answers == ANSWERS[: len(prompts)]
    assert seen == list(range(len(prompts)))
    assert stored.name == "counting"
    return inner.calls


def test_the_same_question_to_the_same_weights_is_asked_once(storage: Storage) -> None:
    assert [calls(storage), calls(storage)] == [1, 0]
    others: list[dict[str, Any]] = [{"adapter": "2"}, {"most": 5}, {"prompts": PROMPTS[:1]}, {"device": "x"}]
    assert [calls(storage, **other) for other in others] == [1] * 4
    assert all(key.startswith("private/ftjob-1/answers/") for key in storage.keys("private"))


def test_what_is_forged_or_torn_is_not_believed(storage: Storage) -> None:
    calls(storage)
    assert calls(storage, key=b"x" * 32) == 1
    [name] = storage.keys("private")
    whole = b"".join(storage.stream(name))
    assert calls(storage, key=b"x" * 32) == 0, "kept under the other key now"
    harmless = json.loads(whole)
    harmless["answers"][0][0] = "I cannot help with that."
    for content in (json.dumps(harmless).encode(), whole[:-20], b"", b"[]", b'{"answers": 1, "mac": 2}'):
        storage.put(name, content)
        assert calls(storage) == 1
    assert calls(storage) == 0


def test_a_storage_that_fails_costs_nothing_but_the_keeping(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise StorageUnavailableError

    monkeypatch.setattr(storage, "put", fails)
    monkeypatch.setattr(storage, "stream", fails)
    assert [calls(storage), calls(storage)] == [1, 1]
