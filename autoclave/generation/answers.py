"""What answers prompts, and what an answer is: one interface for a model in this process and one elsewhere.

A generator is strictly greedy. It answers every prompt or raises: there is never half a score. Torch-free.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from autoclave.progress import ProgressCallback

Prompt = list[dict[str, Any]]


@dataclass(frozen=True)
class Answer:
    """`num_tokens` without the one that ends it. `cut_off`: it did not end within `max_new_tokens`."""

    text: str
    num_tokens: int
    cut_off: bool


OnAnswer = Callable[[int, Answer], None]
"""Gets the place of a prompt and its answer, once per prompt, in any order, from one thread at a time."""


class Generator(Protocol):
    @property
    def name(self) -> str:
        """For reports and for files of kept answers; without secrets."""

    def answer(
        self,
        prompts: Sequence[Prompt],
        *,
        max_new_tokens: int,
        on_answer: OnAnswer | None = None,
        on_progress: ProgressCallback | None = None,
    ) -> list[Answer]:
        """The greedy answer to each prompt (a list of messages with role and content), in order. One that
        does not end is cut at `max_new_tokens` and says so."""


def num_cut_off(answers: Sequence[Answer]) -> int:
    return sum(answer.cut_off for answer in answers)
