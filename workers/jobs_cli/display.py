"""How a watched job looks: a table that changes in place on a terminal, lines in a pipe, JSON for scripts."""

from __future__ import annotations

import json
import sys
import time
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from workers.jobs_cli import blocks, formats
from workers.jobs_cli.following import Event
from workers.jobs_cli.watching import Watched

STAGES = ("prepare", "train", "sanitize", "evaluate", "publish")
SHOWN_EVENTS = 6
_COLOURS = {"succeeded": "green", "failed": "red", "cancelled": "yellow", "running": "cyan"}


class Lines:
    """A line per change on standard output; what concerns the connection goes to standard error."""

    def __init__(self) -> None:
        self._shown: tuple[Any, ...] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def show(self, watched: Watched, news: list[Event]) -> None:
        for event in news:
            self.event(event)
        job = watched.job
        state = (job["status"], job["stage"], job.get("queue_position"), _requested(job))
        if state != self._shown:
            self._shown = state
            print(f"{formats.clock(time.time())}  {state_line(job)}", flush=True)

    def event(self, event: Event) -> None:
        print(event_line(event), flush=True)

    def trouble(self, reason: str) -> None:
        print(f"lost the server, trying again: {formats.clean(reason)}", file=sys.stderr, flush=True)

    def back(self) -> None:
        print("the server is back", file=sys.stderr, flush=True)


class JsonLines(Lines):
    """`{"job": {...}}` whenever the job changed, `{"event": {...}}` per event."""

    def show(self, watched: Watched, news: list[Event]) -> None:
        for event in news:
            self.event(event)
        state = (json.dumps(watched.job),)
        if state != self._shown:
            self._shown = state
            print(json.dumps({"job": watched.job}), flush=True)

    def event(self, event: Event) -> None:
        print(json.dumps({"event": event}), flush=True)


class Screen:
    """A table that is drawn anew in place. What it last showed stays on the terminal."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._levels = blocks.levels_for(console.encoding)
        self._watched: Watched | None = None
        self._lost: str | None = None
        self._live = Live(console=console, auto_refresh=False)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def show(self, watched: Watched, _news: list[Event], /) -> None:
        self._watched = watched
        self._draw()

    def trouble(self, reason: str) -> None:
        self._lost = reason
        self._draw()

    def back(self) -> None:
        self._lost = None
        self._draw()

    def _draw(self) -> None:
        if self._watched is not None:
            now, width = time.time(), self._console.width
            table = job_table(self._watched, width=width, levels=self._levels, now=now, lost=self._lost)
            self._live.update(table, refresh=True)


def job_table(watched: Watched, *, width: int, levels: str, now: float, lost: str | None = None) -> Table:
    """Everything about a job, a row per subject. `lost` is why the server cannot be reached."""
    job, room = watched.job, max(10, min(60, width - 14))
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True, min_width=8)
    table.add_column(overflow="fold")

    def add(name: str, value: str, style: str = "") -> None:
        table.add_row(name, Text(formats.clean(value), style=style))

    add("job", job["id"])
    add("model", job.get("fine_tuned_model") or f"on {job['model']}")
    if (defence := job.get("defence") or {}).get("name", "sft") != "sft":
        settings = ", ".join(f"{name} {value}" for name, value in defence.items() if name != "name")
        add("defence", f"{defence['name']} ({settings})")
    add("status", state_line(job), _COLOURS.get(job["status"], ""))
    if job["status"] == "running":
        add("stages", _stages(job["stage"]))
    progress = job.get("progress") or {}
    if progress.get("total_steps"):
        done = progress["step"] / progress["total_steps"]
        add("step", f"{progress['step']}/{progress['total_steps']}  {blocks.bar(done, 30, levels=levels)}")
    if progress.get("tokens_per_second") is not None:
        add("speed", formats.speed(progress["tokens_per_second"]))
    if watched.losses:
        known = [loss for loss in watched.losses if loss is not None]
        ends = f"{formats.number(known[0], 3)} to {formats.number(known[-1], 3)}" if known else ""
        add("loss", blocks.sparkline(watched.losses, room, levels=levels))
        add("", ends)
    if scores := formats.three_scores(job.get("safety")):
        add("harmful", f"{scores}  (percent)")
    if job.get("estimated_finish") is not None and not watched.has_ended:
        left = formats.duration(job["estimated_finish"] - now)
        add("ends in", f"{left} ({formats.clock(job['estimated_finish'])} UTC)")
    for name, event in zip(["events", *[""] * SHOWN_EVENTS], watched.messages[-SHOWN_EVENTS:], strict=False):
        add(name, event_line(event), "red" if event.get("level") == "error" else "dim")
    if lost is not None:
        add("server", f"away, trying again: {lost}", "yellow")
    return table


def state_line(job: dict[str, Any]) -> str:
    """Where a job stands, in one line."""
    status, stage = job["status"], job["stage"]
    parts = [status]
    if status == "queued" and stage == "paused":
        parts = [f"paused before {job.get('paused_at')}"]
    elif status == "queued" and job.get("queue_position"):
        parts = [f"queued, number {job['queue_position']} in the queue"]
    elif status == "running":
        parts = [f"running, stage {stage}"]
    elif status == "failed" and job.get("error"):
        parts = [f"failed with {job['error']['code']}: {job['error']['message']}"]
    elif status == "succeeded":
        parts = [f"succeeded: {job.get('fine_tuned_model')}"]
    if requested := _requested(job):
        parts.append(requested)
    if status not in ("queued", "running") and (scores := formats.three_scores(job.get("safety"))):
        parts.append(f"harmful score {scores}")
    return formats.clean("; ".join(parts))


def state_word(job: dict[str, Any]) -> str:
    """For a list: shorter than `state_line`."""
    if job["status"] == "queued" and job["stage"] == "paused":
        return "paused"
    if job["status"] == "running":
        return f"running, {job['stage']}"
    if job["status"] == "failed" and job.get("error"):
        return formats.clean(f"failed, {job['error']['code']}")
    return formats.clean(str(job["status"]))


def event_line(event: Event) -> str:
    level = "" if event.get("level") == "info" else f"{event.get('level')}: "
    return f"{formats.clock(event['created_at'])}  {level}{formats.clean(str(event['message']))}"


def _requested(job: dict[str, Any]) -> str | None:
    if job["status"] != "running":
        return None
    if job.get("cancel_requested"):
        return "cancel requested"
    return "pause requested" if job.get("pause_requested") else None


def _stages(current: str) -> str:
    position = STAGES.index(current) if current in STAGES else -1
    done, later = STAGES[: max(position, 0)], STAGES[position + 1 :]
    return "  ".join([*(f"{stage} done" for stage in done), f"[{current}]", *later])
