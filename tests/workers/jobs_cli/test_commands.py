"""The other commands against the real API, and the documentation of all of them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import typer.main

from service.db import Database
from service.jobs.metrics import add_steps
from tests.builders import BASE_ID, Tenant, get_job, make_job
from tests.workers.jobs_cli.conftest import (
    Meanwhile,
    Terminal,
    change,
    end,
    make_running,
    say,
    say_loss,
)
from workers.jobs_cli.app import app

DOCUMENT = Path(__file__).parents[3] / "docs" / "jobs-cli.md"
SAFETY = {"summary": {"harmful_score": {"base": 0.0, "before": 98.0, "after": 1.5}}}


def test_list(terminal: Terminal, database: Database, tenant: Tenant) -> None:
    headings = "job created (UTC) status harmful score base fine-tuned model"
    assert terminal.out("list").split() == headings.split()
    with database.transaction() as session:
        ids = [
            make_job(session, tenant.project_id, created_at=1e9 + i, **columns).id
            for i, columns in enumerate(
                [
                    {"status": "succeeded", "stage": "publish", "safety_report": SAFETY},
                    {"status": "failed", "error_code": "non_finite_loss", "error_message": "x"},
                    {"status": "running", "stage": "train", "user_metadata": {"team": "a=b"}},
                    {"status": "paused", "stage": "train"},
                ]
            )
        ]
    lines = terminal.out("list").splitlines()[1:]
    assert [line.split()[0] for line in lines] == ids[::-1]
    assert "2001-09-09 01:46:43  paused" in lines[0]
    assert "running, train" in lines[1]
    assert "failed, non_finite_loss" in lines[2]
    assert "base 0.0, before 98.0, after 1.5" in lines[3]

    def listed(*options: str) -> list[str]:
        return [json.loads(line)["id"] for line in terminal.out("list", "--json", *options).splitlines()]

    assert listed("--limit", "2") == ids[:1:-1]
    assert listed("--status", "paused") == [ids[3]]
    assert listed("--metadata", "team=a=b") == [ids[2]]
    assert listed("--model", BASE_ID) == ids[::-1]
    assert listed("--model", "other") == []
    assert "--metadata takes KEY=VALUE" in terminal.refused("list", "--metadata", "team")
    assert "status" in terminal.refused("list", "--status", "sleeping")


def test_a_list_of_several_pages(terminal: Terminal, database: Database, tenant: Tenant) -> None:
    with database.transaction() as session:
        ids = [
            make_job(session, tenant.project_id, created_at=1e9 + i, status="cancelled").id
            for i in range(130)
        ]
    found = [json.loads(line)["id"] for line in terminal.out("list", "--json", "--limit", "120").splitlines()]
    assert found == ids[:9:-1]


def test_show(terminal: Terminal, database: Database, tenant: Tenant) -> None:
    job_id = make_running(
        database,
        tenant,
        stage="sanitize",
        safety_report=SAFETY,
        progress={"step": 3, "total_steps": 6},
        pause_requested_at=time.time(),
        estimated_finish_at=time.time() + 100,
    )
    add_curve(database, job_id)
    say(database, job_id, "something happened", level="warn")
    shown = terminal.out("show", job_id)
    for words in (
        job_id,
        "running, stage sanitize; pause requested",
        "prepare done  train done  [sanitize]  evaluate  publish",
        "3/6",
        "█▇▆▅▄▃▂▁",
        "8.000 to 1.000",
        "base 0.0, before 98.0, after 1.5",
        "ends in   1:",
        "warn: something happened",
    ):
        assert words in shown, shown
    assert terminal.json("show", job_id)["id"] == job_id


def add_curve(database: Database, job_id: str) -> None:
    losses = [8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0]
    with database.transaction() as session:
        add_steps(
            session,
            job_id,
            first_step=1,
            train_loss=losses,
            learning_rate=[0.001] * 8,
            tokens_per_second=[None, *[100.0] * 7],
        )


def test_metrics(terminal: Terminal, database: Database, tenant: Tenant) -> None:
    job_id = make_running(database, tenant)
    add_curve(database, job_id)
    lines = [line.split("\t") for line in terminal.out("metrics", job_id).splitlines()]
    assert lines[0][:2] == ["step", "train_loss"]
    assert lines[1] == ["1", "8.0", "", "", "", "0.001", ""]
    assert [line[1] for line in lines[1:]] == [f"{n}.0" for n in range(8, 0, -1)]
    assert terminal.json("metrics", job_id)["num_steps"] == 8
    assert len(terminal.out("metrics", job_id, "--points", "4").splitlines()) == 5


def test_curves_on_a_terminal() -> None:
    from rich.console import Console

    from workers.jobs_cli.blocks import LEVELS
    from workers.jobs_cli.curves import FIGURES, curves_table

    points = [dict.fromkeys(FIGURES) | {"step": i + 1, "train_loss": 8.0 - i} for i in range(8)]
    points[3]["valid_loss"] = points[7]["valid_loss"] = 2.0
    console = Console(width=100, force_terminal=False)
    with console.capture() as captured:
        console.print(curves_table(points, width=100, levels=LEVELS))
    shown = captured.get()
    assert "steps 1 to 8" in shown
    assert "█▇▆▅▄▃▂▁" in shown
    assert "▄▄" in shown
    assert "learning rate" not in shown, "it was not measured"


def test_events(terminal: Terminal, database: Database, tenant: Tenant, meanwhile: Meanwhile) -> None:
    job_id = make_running(database, tenant)
    for number in range(120):
        say(database, job_id, f"event {number}")
    # Other characters than a line feed end no event.
    say(database, job_id, "one\u2028two\x85three")

    def messages(*options: str) -> list[str]:
        return [line.split("  ", 1)[1] for line in terminal.out("events", job_id, *options).split("\n")[:-1]]

    assert messages("--limit", "2") == ["event 119", "one?two?three"]
    assert messages("--limit", "110")[0] == "event 11"
    assert (
        json.loads(terminal.out("events", job_id, "--limit", "1", "--json"))["message"]
        == "one\u2028two\x85three"
    )
    with meanwhile(lambda: end(database, job_id), looks=1):
        followed = messages("--follow")
    assert followed == [*(f"event {i}" for i in range(120)), "one?two?three", "the end"]
    assert messages("--follow") == followed


def test_a_terminal_that_cannot_show_a_text(terminal: Terminal, database: Database, tenant: Tenant) -> None:
    job_id = make_running(database, tenant)
    say(database, job_id, "größer → besser")
    environment = terminal.environment | {"PYTHONIOENCODING": "ascii"}
    end(database, job_id)
    watching = Terminal(environment).start("watch", job_id, stdout=subprocess.PIPE)
    shown, _ = watching.communicate(timeout=60)
    assert watching.returncode == 2
    assert "  gr??er ? besser\n" in shown


def test_pause_resume_cancel_retry(terminal: Terminal, database: Database, tenant: Tenant) -> None:
    with database.transaction() as session:
        job_id = make_job(session, tenant.project_id).id
    assert terminal.out("pause", job_id) == f"{job_id}  paused before prepare\n"
    assert terminal.json("resume", job_id)["status"] == "queued"
    assert terminal.out("cancel", job_id) == f"{job_id}  cancelled\n"
    assert "has ended" in terminal.refused("cancel", job_id) or "already" in terminal.refused(
        "cancel", job_id
    )
    retried = terminal.out("retry", job_id).strip()
    assert get_job(database, retried).cloned_from == job_id
    running = make_running(database, tenant)
    assert terminal.out("cancel", running) == f"{running}  running, stage publish; cancel requested\n"
    say_loss(database, running, 1, 2.0)
    change(database, running, progress={"step": 1, "total_steps": 2, "tokens_per_second": 7.0})
    assert "7 tokens/s" in terminal.out("show", running)


def test_every_command_and_option_is_documented() -> None:
    text = DOCUMENT.read_text()
    sections = {
        title: section
        for section in re.split(r"^## ", text, flags=re.MULTILINE)
        for title in re.findall(r"`(\w+)`", section.split("\n", 1)[0])
    }
    command = typer.main.get_command(app)
    commands = command.commands  # type: ignore[attr-defined]
    assert sorted(sections) == sorted(commands)
    everywhere = text.split("\n## ", 1)[0]
    for name, one in commands.items():
        options = {option for parameter in one.params for option in parameter.opts if option.startswith("--")}
        missing = {option for option in options if f"`{option}" not in sections[name] + everywhere}
        assert missing == set(), f"{name}: {missing}"
        # And nothing that is not there.
        documented = set(re.findall(r"`(--[a-z-]+)", sections[name]))
        assert documented <= options, f"{name}: {documented - options}"


def test_it_starts_without_the_client_and_the_service() -> None:
    code = """
import sys
sys.argv = ["autoclave", "jobs", "--help"]
from workers.cli import main
try:
    main()
except SystemExit as end:
    assert end.code == 0, end.code
heavy = {"httpx", "sqlalchemy", "torch", "fastapi", "celery"} & sys.modules.keys()
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_it_works_where_only_the_client_is_installed() -> None:
    """Up to the server that is not there."""
    code = """
import sys
for name in ("sqlalchemy", "structlog", "fastapi", "celery", "torch", "numpy", "transformers", "openai"):
    sys.modules[name] = None
sys.argv = ["autoclave", "jobs", "list", "--base-url", "http://127.0.0.1:9"]
from workers.cli import main
main()
"""
    environment = os.environ | {"AUTOCLAVE_API_KEY": "sk-x"}
    done = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True, env=environment
    )
    assert done.returncode == 4, done.stderr
    assert done.stderr.startswith("error: cannot reach http://127.0.0.1:9/v1")


def test_a_missing_extra_is_named() -> None:
    code = """
import sys
sys.modules["httpx"] = None
sys.argv = ["autoclave", "jobs", "list"]
from workers.cli import main
main()
"""
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 2
    assert (
        done.stderr == "error: this command needs httpx; install it with: pip install 'autoclave[client]'\n"
    )
