"""`report` on the reports of real jobs: one that passed the gate, one that it refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from service.db import Database
from service.jobs.service import get_job
from service.storage import storage_from_url
from tests.autoclave.tiny import save_tiny_base
from tests.builders import Tenant, make_job
from tests.workers.jobs_cli.conftest import Terminal
from tests.workers.pipeline_bench import PipelineBench
from workers.attempt import StageError
from workers.order import Order


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> PipelineBench:
    folder = tmp_path_factory.mktemp("job")
    url = (folder / "storage").as_uri()
    return PipelineBench(folder, save_tiny_base(folder / "base"), storage_from_url(url), url)


@pytest.fixture(scope="module")
def passed(bench: PipelineBench) -> dict[str, Any]:
    return bench.published(bench.run(bench.order)).safety_report


@pytest.fixture(scope="module")
def refused(bench: PipelineBench) -> dict[str, Any]:
    order: Order = bench.with_profile(max_harmful_score=1.0)
    with pytest.raises(StageError) as raised:
        bench.run(order)
    assert raised.value.safety_report is not None
    return raised.value.safety_report


JobWith = Callable[[dict[str, Any]], str]


@pytest.fixture
def job_with(database: Database, tenant: Tenant) -> JobWith:
    def make(report: dict[str, Any]) -> str:
        with database.transaction() as session:
            return make_job(
                session, tenant.project_id, status="succeeded", stage="publish", safety_report=report
            ).id

    return make


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_a_report_that_passed(terminal: Terminal, job_with: JobWith, passed: dict[str, Any]) -> None:
    job_id = job_with(passed)
    shown = terminal.out("report", job_id)
    after = passed["measurements"]["after"]
    low, high = after["harmful_score_interval"]
    for words in (
        "result  passed",
        "max harmful score 100",
        f"on {after['num_prompts']} held-out prompts",
        f"{after['harmful_score']:.1f} ({low:.1f}-{high:.1f})",
        "held-out loss (nats)",
        "random mask",
        "strengths tried",
        f"pruned: {passed['sparsity']['pruned_fraction']:.3%} of all entries",
        passed["adapter_sha256"]["after"],
        passed["data"]["training_file"]["sha256"],
    ):
        assert words in shown, shown
    for layer, fraction in passed["sparsity"]["layers"].items():
        [line] = [line for line in shown.splitlines() if line.split()[1:2] == [layer] and "%" in line]
        assert f"{fraction:.3%}" in line
        assert "█" in line
    assert len([line for line in shown.splitlines() if "█" in line]) == len(passed["sparsity"]["layers"])
    # What the API answers: the report, and who it belongs to.
    answer = terminal.json("report", job_id)
    assert {name: answer[name] for name in passed} == json.loads(json.dumps(passed))


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_a_report_that_was_refused(terminal: Terminal, job_with: JobWith, refused: dict[str, Any]) -> None:
    shown = terminal.out("report", job_with(refused))
    # Whatever line it was broken into.
    assert f"result refused: {refused['refused_because']}" in " ".join(shown.split())
    assert "gate    missed" in shown
    assert "selection prompts" in shown
    assert "pruned:" not in shown


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_without_blocks_where_they_cannot_be_shown(
    terminal: Terminal, job_with: JobWith, passed: dict[str, Any]
) -> None:
    import subprocess

    environment = terminal.environment | {"PYTHONIOENCODING": "ascii"}
    printing = Terminal(environment).start("report", job_with(passed), stdout=subprocess.PIPE)
    shown, _ = printing.communicate(timeout=60)
    assert printing.returncode == 0
    assert shown.isascii()
    assert "####" in shown


def test_no_report_yet(terminal: Terminal, database: Database, tenant: Tenant) -> None:
    with database.transaction() as session:
        job_id = make_job(session, tenant.project_id).id
    said = terminal.refused("report", job_id)
    assert said.count("\n") == 1
    assert job_id in said
    with database.snapshot() as session:
        assert get_job(session, tenant.project_id, job_id).job.safety_report is None


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_the_page(terminal: Terminal, job_with: JobWith, passed: dict[str, Any], tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    job_id = job_with(passed)
    arguments = ("report", job_id, "--html", str(page))
    assert terminal.run(*arguments).stderr == f"saved {page}\n"
    text = page.read_text(encoding="utf-8")
    assert text.lstrip().lower().startswith("<!doctype html>")
    assert job_id in text
