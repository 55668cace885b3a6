"""A progress bar on standard error for `on_progress` callbacks; standard output stays for results."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn
from rich.progress import Progress as RichProgress

from autoclave.progress import Progress, ProgressCallback


def describe(progress: Progress) -> str:
    """The figures beside the bar, e.g. `loss 1.234  5.1k tok/s  0:42 left`."""
    parts = []
    if progress.loss is not None:
        parts.append(f"loss {progress.loss:.4f}")
    if progress.tokens_per_second is not None:
        parts.append(f"{progress.tokens_per_second / 1000:.1f}k tok/s")
    if progress.seconds_remaining is not None:
        minutes, seconds = divmod(round(progress.seconds_remaining), 60)
        parts.append(f"{minutes}:{seconds:02d} left")
    return "  ".join(parts)


@contextmanager
def progress_bar(console: Console | None = None) -> Iterator[ProgressCallback]:
    """One line per stage, kept on the screen when the stage is done. `console` defaults to stderr."""
    columns = (
        TextColumn("{task.description:<10}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[figures]}"),
    )
    with RichProgress(*columns, console=console or Console(stderr=True)) as bars:
        tasks: dict[str, TaskID] = {}

        def on_progress(progress: Progress) -> None:
            if progress.stage not in tasks:
                tasks[progress.stage] = bars.add_task(progress.stage, total=progress.total_steps, figures="")
            bars.update(
                tasks[progress.stage],
                completed=progress.step,
                total=progress.total_steps,
                figures=describe(progress),
            )

        yield on_progress
