from __future__ import annotations

import pytest

from workers.jobs_cli import formats


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (-3, "0 s"),
        (59.4, "59 s"),
        (59.6, "1:00 min"),
        (187, "3:07 min"),
        (3599.7, "1:00 h"),
        (8100, "2:15 h"),
    ],
)
def test_durations(seconds: float, shown: str) -> None:
    assert formats.duration(seconds) == shown


def test_speeds() -> None:
    assert [formats.speed(n) for n in (None, 7.2, 5123.0)] == ["-", "7 tokens/s", "5.1k tokens/s"]


def test_what_a_terminal_would_obey_is_taken_out() -> None:
    assert formats.clean("a\x1b[2Jb\x9bc\rd\tü\n") == "a?[2Jb?c?d\tü\n"


def test_scores() -> None:
    safety = {"harmful_score": {"base": None, "before": 98.34, "after": 1.0}}
    assert formats.three_scores(safety) == "base -, before 98.3, after 1.0"
    assert formats.three_scores(None) is None
