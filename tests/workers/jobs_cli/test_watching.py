"""`watch` and `events --follow` to the end of a job: changes, restarts, a job that goes away."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import threading
import time

import pytest

from service.db import Database
from service.jobs.states import Status
from service.models import Job
from tests.builders import Tenant, get_job
from tests.waiting import wait_until
from tests.workers.jobs_cli.conftest import (
    Meanwhile,
    Server,
    Terminal,
    change,
    end,
    make_running,
    say,
    say_loss,
    terminal_of,
)
from workers.jobs_cli.blocks import LEVELS

QUICK = ("--interval", "0.1")


@pytest.mark.parametrize(
    ("status", "exit_code", "words"),
    [
        (Status.SUCCEEDED, 0, "succeeded"),
        (Status.FAILED, 1, "failed with non_finite_loss: the loss became nan at step 7"),
        (Status.CANCELLED, 2, "cancelled"),
    ],
)
def test_it_ends_as_the_job_does(
    meanwhile: Meanwhile,
    terminal: Terminal,
    database: Database,
    tenant: Tenant,
    status: Status,
    exit_code: int,
    words: str,
) -> None:
    job_id = make_running(database, tenant)
    with meanwhile(lambda: end(database, job_id, status)):
        result = terminal.run("watch", job_id, *QUICK, exit_code=exit_code)
    assert result.stderr == ""
    lines = [line.split("  ", 1)[1] for line in result.stdout.splitlines()]
    assert lines[0] == "running, stage publish"
    assert lines.count("the end") == 1
    assert words in lines[-1] or words in lines[-2]
    # Once more, when it is over: the same ending at once.
    again = terminal.run("watch", job_id, exit_code=exit_code).stdout
    assert words in again


def test_a_line_per_change_in_a_pipe(
    meanwhile: Meanwhile, terminal: Terminal, database: Database, tenant: Tenant
) -> None:
    job_id = make_running(database, tenant, stage="train", status="queued")
    with meanwhile(
        lambda: change(database, job_id, status="running"),
        lambda: change(database, job_id, progress={"step": 1, "total_steps": 40, "loss": 2.5}),
        lambda: say_loss(database, job_id, 1, 2.5),
        lambda: change(database, job_id, cancel_requested_at=time.time()),
        lambda: change(database, job_id, stage="publish"),
        lambda: end(database, job_id),
    ):
        result = terminal.run("watch", job_id, *QUICK, exit_code=2)
    lines = [line.split("  ", 1)[1] for line in result.stdout.splitlines()]
    # Events come by another connection: where they stand between the others depends on the machine.
    assert [line for line in lines if line not in ("Step 1/40: training loss=2.5000", "the end")] == [
        "queued, number 1 in the queue",
        "running, stage train",
        "running, stage train; cancel requested",
        "running, stage publish; cancel requested",
        "cancelled",
    ]
    assert lines.count("Step 1/40: training loss=2.5000") == lines.count("the end") == 1


def test_json_for_scripts(
    meanwhile: Meanwhile, terminal: Terminal, database: Database, tenant: Tenant
) -> None:
    safety = {"summary": {"harmful_score": {"base": 0.0, "before": 98.0, "after": 1.5}}}
    job_id = make_running(database, tenant, safety_report=safety)
    say_loss(database, job_id, 1, 2.5)
    with meanwhile(lambda: end(database, job_id, Status.SUCCEEDED)):
        result = terminal.run("watch", job_id, "--json", *QUICK)
    said = [json.loads(line) for line in result.stdout.splitlines()]
    jobs = [one["job"] for one in said if "job" in one]
    events = [one["event"] for one in said if "event" in one]
    assert [job["status"] for job in jobs] == ["running", "succeeded"]
    assert jobs[-1]["safety"]["harmful_score"]["after"] == 1.5
    assert [event["type"] for event in events] == ["metrics", "message"]
    assert events[0]["data"]["train_loss"] == 2.5


@pytest.mark.parametrize("command", [("watch", *QUICK), ("events", "--follow")])
def test_a_server_that_restarts(
    meanwhile: Meanwhile, server: Server, database: Database, tenant: Tenant, command: tuple[str, ...]
) -> None:
    """Every event once and in order, those that happened while it was away too."""
    job_id = make_running(database, tenant)
    for number in range(3):
        say(database, job_id, f"before {number}")

    def restart() -> None:
        time.sleep(0.5)
        server.stop()
        say(database, job_id, "while it was away")
        time.sleep(1.0)
        server.start()
        say(database, job_id, "after")
        end(database, job_id)

    name, *options = command
    with meanwhile(restart, looks=1):
        result = terminal_of(server.url, tenant).run(
            name, job_id, *options, exit_code=2 if name == "watch" else 0
        )
    messages = [line.split("  ", 1)[1] for line in result.stdout.splitlines()]
    said = ["before 0", "before 1", "before 2", "while it was away", "after", "the end"]
    assert [message for message in messages if message in said] == said
    lost, back = result.stderr.splitlines()
    assert lost.startswith(f"lost the server, trying again: cannot reach {server.url}")
    assert back == "the server is back"


def test_a_server_that_stays_away(
    meanwhile: Meanwhile, server: Server, database: Database, tenant: Tenant
) -> None:
    job_id = make_running(database, tenant)
    with meanwhile(server.stop):
        result = terminal_of(server.url, tenant).run("watch", job_id, "--patience", "1", *QUICK, exit_code=4)
    assert result.stderr.splitlines()[-1].startswith(f"error: cannot reach {server.url}")
    assert get_job(database, job_id).status == "running"


def test_a_job_that_is_deleted_while_watched(
    meanwhile: Meanwhile, terminal: Terminal, database: Database, tenant: Tenant
) -> None:
    job_id = make_running(database, tenant)

    def delete() -> None:
        with database.transaction() as session:
            session.delete(session.get_one(Job, job_id))

    with meanwhile(delete):
        result = terminal.run("watch", job_id, *QUICK, exit_code=3)
    assert result.stderr.count("\n") == 1
    assert job_id in result.stderr


def test_a_key_that_is_revoked_while_watched(
    meanwhile: Meanwhile, terminal: Terminal, database: Database, tenant: Tenant
) -> None:
    from sqlalchemy import update

    from service.models import ApiKey

    job_id = make_running(database, tenant)

    def revoke() -> None:
        with database.transaction() as session:
            session.execute(update(ApiKey).values(revoked_at=time.time()))

    with meanwhile(revoke):
        result = terminal.run("watch", job_id, *QUICK, exit_code=3)
    assert "refuses the key" in result.stderr


def test_ctrl_c_leaves_the_job_running(terminal: Terminal, database: Database, tenant: Tenant) -> None:
    job_id = make_running(database, tenant)
    watching = terminal.start("watch", job_id, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    with watching:
        assert watching.stdout is not None
        assert watching.stdout.readline().endswith("running, stage publish\n")
        watching.send_signal(signal.SIGINT)
        _, said = watching.communicate(timeout=20)
    assert watching.returncode == 130
    assert said == (
        f"no longer watching; the job goes on. To watch again: autoclave jobs watch {job_id}; "
        f"to stop the job: autoclave jobs cancel {job_id}\n"
    )
    job = get_job(database, job_id)
    assert (job.status, job.cancel_requested_at) == ("running", None)


def test_ctrl_c_ends_following(terminal: Terminal, database: Database, tenant: Tenant) -> None:
    job_id = make_running(database, tenant)
    say(database, job_id, "first")
    following = terminal.start("events", job_id, "--follow", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    with following:
        assert following.stdout is not None
        assert following.stdout.readline().endswith("first\n")
        following.send_signal(signal.SIGINT)
        _, said = following.communicate(timeout=20)
    assert (following.returncode, said) == (130, "error: interrupted; no job was stopped by it\n")


def test_a_table_on_a_terminal(terminal: Terminal, database: Database, tenant: Tenant) -> None:
    """Through a pseudo-terminal: curve, speed, step, harmful score, time to the end, last events."""
    job_id = make_running(
        database,
        tenant,
        stage="train",
        progress={"step": 20, "total_steps": 40, "loss": 0.5, "tokens_per_second": 5123.0},
        estimated_finish_at=time.time() + 3600,
    )
    for step in range(1, 21):
        say_loss(database, job_id, step, 3.0 - step / 10)
    say(database, job_id, "a \x1b[31mred\x1b[0m message")
    reading, writing = pty.openpty()
    watching = terminal.start(
        "watch", job_id, *QUICK, stdin=subprocess.DEVNULL, stdout=writing, stderr=subprocess.DEVNULL
    )
    os.close(writing)
    seen: list[bytes] = []

    def read() -> None:
        while True:
            try:
                seen.append(os.read(reading, 65536))
            except OSError:  # the other end is closed
                return

    reader = threading.Thread(target=read)
    reader.start()
    try:
        wait_until(lambda: b"red?[0m message" in b"".join(seen), timeout_seconds=40)
        safety = {"summary": {"harmful_score": {"base": 0.0, "before": 98.0, "after": 1.5}}}
        change(database, job_id, stage="publish", safety_report=safety, progress=None)
        end(database, job_id, Status.SUCCEEDED)
        assert watching.wait(20) == 0
    finally:
        watching.kill()
        watching.wait()
        reader.join()
        os.close(reading)
    shown = b"".join(seen).decode()
    assert "20/40" in shown
    assert "5.1k tokens/s" in shown
    # The whole curve: it falls from the highest block to the lowest.
    assert (
        "".join(dict.fromkeys(next(line for line in shown.splitlines() if "█▇" in line).split()[-1]))
        == LEVELS[::-1]
    )
    assert "2.900 to 1.000" in shown
    assert "prepare done  [train]  sanitize" in shown
    assert "59:5" in shown or "1:00 h" in shown
    assert "base 0.0, before 98.0, after 1.5" in shown
    assert "\x1b[31mred" not in shown
