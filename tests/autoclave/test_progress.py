"""Progress figures and the bar."""

import io

from rich.console import Console

from autoclave.progress import Progress, counted, seconds_remaining
from autoclave.progress_bar import describe, progress_bar


def test_seconds_remaining() -> None:
    assert seconds_remaining(10.0, 4, 6) == 15.0
    assert seconds_remaining(0.0, 0, 6) is None


def test_counted_steps() -> None:
    seen: list[Progress] = []
    report = counted("evaluate", 4, seen.append)
    report(1)
    report(4)
    assert [(p.stage, p.step, p.total_steps) for p in seen] == [("evaluate", 1, 4), ("evaluate", 4, 4)]
    assert seen[0].seconds_remaining is not None
    assert seen[0].seconds_remaining > 0
    assert seen[1].seconds_remaining == 0
    counted("evaluate", 4, None)(1)


def test_describe() -> None:
    assert describe(Progress("train", 1, 2)) == ""
    full = Progress("train", 1, 2, 1.23456, 0.001, 5100.0, 102.4)
    assert describe(full) == "loss 1.2346  5.1k tok/s  1:42 left"


def test_a_line_per_stage() -> None:
    text = io.StringIO()
    with progress_bar(Console(file=text, force_terminal=True, width=100)) as on_progress:
        on_progress(Progress("train", 3, 8, 0.5))
        on_progress(Progress("train", 8, 8, 0.25))
        on_progress(Progress("sanitize", 1, 1))
    last = text.getvalue()
    assert "8/8" in last
    assert "loss 0.2500" in last
    assert "sanitize" in last
