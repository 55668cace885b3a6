"""The child's log: passed on while it runs, and kept for people to read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import structlog

from tests.workers.conftest import Bench, QueuedJob
from workers.child_log import LINES_AT_ONCE, ChildLog, log_tail


def line(event: str, **fields: Any) -> str:
    values = {"event": event, "level": "info", "logger": "workers.runner", "timestamp": "T", **fields}
    return json.dumps(values) + "\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "child.log"


def test_whole_lines_of_ours_are_passed_on_once(path: Path) -> None:
    child_log = ChildLog(path)
    assert child_log.pass_on() == 0
    with structlog.testing.capture_logs() as log, path.open("w") as file:
        file.write(line("one", job_id="j"))
        file.write("a library prints something\n")
        file.write(line("not ours", logger="transformers.x"))
        file.write('{"event": "no logger"}\n{"broken\n[1]\n')
        file.write(line("two", level="warning", exception="Traceback: a tenant's text"))
        file.write(line("three")[:10])
        file.flush()
        assert child_log.pass_on() == 2
        assert child_log.pass_on() == 0
        file.write(line("three")[10:])
        file.flush()
        assert child_log.pass_on() == 1
    assert log == [
        {"event": "one", "log_level": "info", "job_id": "j", "logged_at": "T"},
        {"event": "two", "log_level": "warning", "logged_at": "T"},
        {"event": "three", "log_level": "info", "logged_at": "T"},
    ]


def test_a_flood_is_cut(path: Path) -> None:
    path.write_text("")
    child_log = ChildLog(path)
    path.write_text(line("again") * 3 * LINES_AT_ONCE)
    with structlog.testing.capture_logs() as log:
        assert child_log.pass_on() == LINES_AT_ONCE
    assert log[-1] == {
        "event": "lines of the child left out",
        "log_level": "warning",
        "num_lines": 2 * LINES_AT_ONCE,
    }


def test_an_endless_line_is_skipped(path: Path) -> None:
    child_log = ChildLog(path)
    path.write_text("x" * 3_000_000 + "\n" + line("after"))
    with structlog.testing.capture_logs() as log:
        for _ in range(4):
            child_log.pass_on()
    assert [entry["event"] for entry in log] == ["after"]


def test_what_is_kept_is_for_people(path: Path) -> None:
    path.write_text(line("it broke", level="error", exception="Traceback:\n  here") + "printed\n")
    assert log_tail(path) == "T ERROR workers.runner: it broke\nTraceback:\n  here\nprinted\n"


def test_a_long_traceback_is_kept_from_its_end(path: Path) -> None:
    trace = "\n".join(f"frame {i}" for i in range(2000))
    path.write_text("old\n" * 10_000 + line("it broke", exception=trace))
    kept = log_tail(path)
    assert kept.endswith("frame 1999\n")
    assert len(kept) <= 8192
    assert kept.startswith("frame ")


def test_no_log_is_an_empty_one(path: Path) -> None:
    assert log_tail(path) == ""


def test_every_line_about_an_attempt_says_whose_it_is(bench: Bench, queued_job: QueuedJob) -> None:
    """The supervisor's and the child's; the child is a real process with the real logging."""
    job_id = queued_job(request_id="req_x")
    context = structlog.testing.LogCapture()
    processors = [structlog.contextvars.merge_contextvars, context]
    before = structlog.get_config()["processors"]
    structlog.configure(processors=processors)
    try:
        job = bench.run("logs", job_id)
    finally:
        structlog.configure(processors=before)
    lines = {entry["event"]: entry for entry in context.entries if entry.get("job_id") == job_id}
    assert {"claimed", "child started", "reading 12 lines", "watch out", "child ended"} <= set(lines)
    for event in ("claimed", "child started", "reading 12 lines", "watch out", "child ended"):
        entry = lines[event]
        assert (entry["attempt"], entry["worker"], entry["request_id"]) == (1, "test", "req_x"), entry
    assert lines["watch out"]["process"] == "child"
    assert lines["watch out"]["log_level"] == "warning"
    assert "someone else's words" not in str(context.entries)
    assert job.log_tail is not None
    assert "someone else's words" in job.log_tail
    assert "ZeroDivisionError" in job.log_tail
    assert "ZeroDivisionError" not in str(context.entries)


@pytest.mark.slow
def test_the_real_child_logs_like_that(bench: Bench, queued_job: QueuedJob) -> None:
    """Its base lies nowhere, so it says why it ends."""
    job_id = queued_job(request_id="req_x")
    supervisor = bench.supervisor(None)
    capture = structlog.testing.LogCapture()
    before = structlog.get_config()["processors"]
    structlog.configure(processors=[structlog.contextvars.merge_contextvars, capture])
    try:
        supervisor.run_next()
    finally:
        structlog.configure(processors=before)
    [line] = [entry for entry in capture.entries if entry["event"] == "the job cannot succeed"]
    assert line["job_id"] == job_id
    assert (line["process"], line["attempt"], line["worker"], line["request_id"]) == (
        "child", 1, "test", "req_x"
    )  # fmt: skip
    assert "Traceback" not in str(capture.entries)
    log_tail = bench.job(job_id).log_tail
    assert log_tail is not None
    assert "ERROR __main__: the job cannot succeed\nTraceback" in log_tail
