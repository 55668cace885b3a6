"""How long a command waits for a server that is away, on a clock of its own."""

from __future__ import annotations

import pytest

from workers.jobs_cli.errors import UnreachableError
from workers.jobs_cli.patience import LONGEST_PAUSE_SECONDS, Patience


class Waiting:
    def __init__(self, lasts_seconds: float) -> None:
        self.now = 0.0
        self.pauses: list[float] = []
        self.said: list[str] = []
        self.patience = Patience(
            lasts_seconds,
            on_trouble=self.said.append,
            on_return=lambda: self.said.append("back"),
            sleep=self._sleep,
            clock=lambda: self.now,
        )

    def _sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds


def test_it_waits_longer_and_longer_and_then_gives_up() -> None:
    waiting = Waiting(100.0)
    error = UnreachableError("nobody there")

    def wait_for_ever() -> None:
        while True:
            waiting.patience.wait(error)

    with pytest.raises(UnreachableError, match="nobody there"):
        wait_for_ever()
    assert waiting.now == pytest.approx(100.0)
    assert waiting.pauses[0] <= 0.6
    assert max(waiting.pauses) <= LONGEST_PAUSE_SECONDS * 1.2
    assert len(waiting.pauses) < 25
    assert waiting.said == ["nobody there"]


def test_an_answer_makes_it_patient_again() -> None:
    waiting = Waiting(10.0)
    for _ in range(30):
        waiting.patience.wait(UnreachableError("away"))
        waiting.patience.answered()
    waiting.patience.answered()
    assert waiting.said == ["away", "back"] * 30


def test_a_server_that_says_when_is_not_asked_before() -> None:
    waiting = Waiting(100.0)
    waiting.patience.wait(UnreachableError("busy", retry_after_seconds=20.0))
    assert 16 <= waiting.pauses[0] <= 24


def test_without_patience_it_gives_up_at_once() -> None:
    waiting = Waiting(0.0)
    with pytest.raises(UnreachableError):
        waiting.patience.wait(UnreachableError("away"))
    assert waiting.pauses == []
    assert waiting.said == []
