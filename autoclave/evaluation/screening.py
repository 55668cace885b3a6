"""An upload's own answers put before the judge, before anything is trained on them.

Cheap, and it catches who simply mixes harmful answers into a file. It proves nothing about a file that
passes: harm can be spread, encoded, or of a kind that this judge does not know (Virus, arXiv 2501.17433).
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from autoclave.data.conversations import read_conversations
from autoclave.data.messages import Conversation
from autoclave.errors import JudgeError
from autoclave.evaluation.harm_rates import category_scores
from autoclave.evaluation.intervals import wilson
from autoclave.evaluation.judges import Judge, Verdict

_ANSWERS_AT_ONCE = 256


class Answer(NamedTuple):
    prompt: str
    text: str


@dataclass(frozen=True)
class ScreenResult:
    """Percent of the answers that were judged, with a 95 % Wilson interval. Answers about which the judge
    could not tell count as harmful; those to prompts that it cannot judge at all are `num_not_judged`."""

    harmful_share: float
    harmful_share_interval: tuple[float, float]
    num_harmful: int
    num_undecided: int
    num_judged: int
    num_not_judged: int
    num_answers: int
    category_scores: dict[str, float] | None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def screen_file(
    file: str | Path,
    judge: Judge,
    *,
    max_answers: int,
    between_batches: Callable[[int, int], object] | None = None,
) -> ScreenResult:
    """Judges the trained answers of a chat JSONL file, or a fixed sample of `max_answers` of them.

    `between_batches(done, total)` may raise to stop. Raises DataError for broken lines, and JudgeError if the
    judge fails: there is no result of a part.
    """
    num_answers, sampled = _sample(file, max_answers)
    asked = [answer for answer in sampled if _can_judge(judge, answer.prompt)]
    verdicts: list[Verdict] = []
    for start in range(0, len(asked), _ANSWERS_AT_ONCE):
        batch = asked[start : start + _ANSWERS_AT_ONCE]
        verdicts += judge.judge([answer.prompt for answer in batch], [answer.text for answer in batch])
        if between_batches is not None:
            between_batches(len(verdicts), len(asked))
    num_harmful = sum(verdict.harmful for verdict in verdicts)
    return ScreenResult(
        harmful_share=100 * num_harmful / len(verdicts) if verdicts else 0.0,
        harmful_share_interval=wilson(num_harmful, len(verdicts)) if verdicts else (0.0, 100.0),
        num_harmful=num_harmful,
        num_undecided=sum(verdict.undecided for verdict in verdicts),
        num_judged=len(verdicts),
        num_not_judged=len(sampled) - len(asked),
        num_answers=num_answers,
        category_scores=category_scores(verdicts) if verdicts else None,
    )


def trained_answers(conversation: Conversation) -> Iterator[Answer]:
    """Every answer with text that is trained, with the last message of a user before it ("" if none)."""
    prompt = ""
    for message in conversation.messages:
        if message.role == "user":
            prompt = message.text
        elif message.is_trained and message.text.strip():
            yield Answer(prompt, message.text)


def _sample(file: str | Path, max_answers: int) -> tuple[int, list[Answer]]:
    """The number of all answers, and those with the lowest digests of place and text, in that order: the same
    file gives the same sample, in memory that the file's size does not matter to."""
    heap: list[tuple[int, Answer]] = []
    count = 0
    for conversation in read_conversations(file):
        for answer in trained_answers(conversation):
            digest = hashlib.sha256(f"{count}\n{answer.prompt}\n{answer.text}".encode()).digest()
            entry = (-int.from_bytes(digest), answer)
            count += 1
            if len(heap) < max_answers:
                heapq.heappush(heap, entry)
            elif entry[0] > heap[0][0]:
                heapq.heapreplace(heap, entry)
    return count, [answer for _, answer in sorted(heap, reverse=True)]


def _can_judge(judge: Judge, prompt: str) -> bool:
    try:
        judge.check_prompts([prompt])
    except JudgeError:
        return False
    return True
