"""The page of one job without JavaScript, on both databases: what each kind of visitor reads."""

from __future__ import annotations

import re
import time
from hashlib import sha256
from typing import Any

import pytest

from service.db import Database
from service.jobs import attempts
from service.jobs.attempts import ExitReason
from service.jobs.events import add_event
from service.jobs.metrics import add_steps
from service.jobs.states import Stage
from service.models import Job
from service.scheduling.workers import Kind, announce
from service.storage import Storage
from tests.builders import (
    Tenant,
    limit_running,
    make_adapter,
    make_adapter_file,
    make_checkpoint,
    make_file,
    make_job,
    make_queued_job,
)
from tests.service.dashboard.conftest import Browser
from tests.service.dashboard.reports import make_report

RUNNING = {
    "status": "running",
    "stage": "train",
    "suffix": "support",
    "started_at": 50.0,
    "stage_seconds": {"prepare": 31.0},
    "lease_owner": "gpu-07:4412",
    "fencing_number": 2,
    "attempt_count": 2,
    "progress": {"step": 212, "total_steps": 600, "loss": 0.4231, "tokens_per_second": 5231.0},
}


def job(database: Database, tenant: Tenant, **columns: Any) -> str:
    now = time.time()
    with database.transaction() as session:
        made = make_job(session, tenant.project_id, **columns)
        if made.status == "running":
            made.stage_began_at, made.lease_expires_at = now - 90, now + 60
            made.estimated_finish_at = now + 125
        add_event(session, made.id, "Created fine-tuning job", now=now)
        return made.id


def test_a_running_job(user: Browser, database: Database, tenant: Tenant) -> None:
    job_id = job(database, tenant, **RUNNING)
    with database.transaction() as session:
        add_steps(
            session, job_id, first_step=1, train_loss=[2.0, 1.5], learning_rate=[1e-4, 5e-5],
            tokens_per_second=[10.0, 11.0],
        )  # fmt: skip
    page = user.get(f"/app/jobs/{job_id}")
    assert page.status_code == 200
    text = " ".join(re.sub(r"<[^>]+>", " ", page.text).split())
    for said in (
        "support running",
        "Check the files 31 s Train running, 1 min",
        "Step 212 of 600 of this stage, 35 %",
        "5,231 tokens per second",
        "0.4231 training loss",
        "left, as estimated",
        "From 2 at step 1 to 1.5 at step 2",
        "Created fine-tuning job",
        "Everything is as this base model has it.",
    ):
        assert said in text, said
    assert 'hx-trigger="every 3s"' in page.text
    assert "<polyline" in page.text
    assert "gpu-07" not in page.text


def test_an_operator_reads_more(operator: Browser, database: Database, tenant: Tenant) -> None:
    job_id = job(database, tenant, **RUNNING)
    with database.transaction() as session:
        attempts.begin(session, job_id, 1, worker="gpu-03:9", stage=Stage.PREPARE, now=10.0)
        reason, tail = ExitReason.DIED, "Traceback: <secret>"
        attempts.end(
            session, job_id, 1, reason=reason, stage=Stage.TRAIN, now=40.0, exit_code=-9, log_tail=tail
        )
        attempts.begin(session, job_id, 2, worker="gpu-07:4412", stage=Stage.TRAIN, now=50.0)
    text = operator.get(f"/dashboard/jobs/{job_id}").text
    assert "gpu-07:4412" in text
    assert "gpu-03:9" in text
    assert "Traceback: &lt;secret&gt;" in text
    assert "its process was ended by SIGKILL; the machine may have run out of memory" in text
    assert "prepare to train" in text
    assert tenant.project_id in text
    assert "train.jsonl" not in text, "operators see figures of uploads"


def test_an_owner_sees_attempts_but_no_worker_and_no_log(
    user: Browser, database: Database, tenant: Tenant
) -> None:
    job_id = job(database, tenant, **RUNNING, log_tail="secret of the machine")
    with database.transaction() as session:
        attempts.begin(session, job_id, 1, worker="gpu-03:9", stage=Stage.PREPARE, now=10.0)
        reason, tail = ExitReason.LOST_LEASE, "secret of the machine"
        attempts.end(session, job_id, 1, reason=reason, stage=Stage.TRAIN, now=40.0, log_tail=tail)
    for path in ("", "/live", "/events", "/metrics.json"):
        text = user.get(f"/app/jobs/{job_id}{path}").text
        assert "secret" not in text
        assert "gpu-0" not in text
    assert "its worker stopped answering and lost the job" in user.get(f"/app/jobs/{job_id}").text


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"status": "validating_files"}, "Its files are being checked."),
        ({"status": "paused", "stage": "train"}, "waits until it is resumed"),
        ({"status": "queued", "queued_at": 1.0}, "No worker of this server is there now"),
    ],
    ids=lambda value: value.get("status") if isinstance(value, dict) else "",
)
def test_why_nothing_happens(
    user: Browser, database: Database, tenant: Tenant, columns: dict[str, Any], said: str
) -> None:
    job(database, tenant, **RUNNING)
    job_id = job(database, tenant, **columns)
    assert said in user.get(f"/app/jobs/{job_id}").text


def test_a_job_held_by_the_quota(user: Browser, database: Database, tenant: Tenant) -> None:
    job(database, tenant, **RUNNING)
    job_id = job(database, tenant, status="queued", queued_at=1.0)
    with database.transaction() as session:
        announce(session, Kind(), now=time.time())
        limit_running(session, tenant.project_id, 1)
    assert "This project runs 1 of the 1 jobs" in user.get(f"/app/jobs/{job_id}").text


def test_a_place_in_the_queue(user: Browser, database: Database, tenant: Tenant) -> None:
    with database.transaction() as session:
        announce(session, Kind(), now=time.time())
        ids = [make_queued_job(session, tenant.project_id, queued_at=float(at)).id for at in range(3)]
    assert "In the queue at place 3." in user.get(f"/app/jobs/{ids[2]}").text


def released(database: Database, tenant: Tenant, storage: Storage) -> str:
    job_id = job(
        database,
        tenant,
        status="succeeded",
        stage="publish",
        safety_report=make_report(),
        started_at=10.0,
        finished_at=4700.0,
        trained_tokens=4056170,
        stage_outputs={"prepare": {"num_conversations": 4213, "num_tokens": 811234}},
    )
    with database.transaction() as session:
        row = session.get_one(Job, job_id)
        adapter = make_adapter(session, row, sha256=sha256(b"tar!").hexdigest())
        inside = {"bytes": 2, "offset": 1, "sha256": sha256(b"ar").hexdigest()}
        make_adapter_file(session, adapter, name="README.md", **inside)
        read = {"sha256": sha256(b"step\n").hexdigest()}
        curve = make_file(session, tenant.project_id, filename="step_metrics.csv", bytes=5, **read)
        row.result_file_ids = [curve.id]
        storage.put(adapter.storage_key, b"tar!")
        storage.put(curve.storage_key, b"step\n")
    return job_id


def test_a_job_that_succeeded(user: Browser, database: Database, tenant: Tenant, storage: Storage) -> None:
    job_id = released(database, tenant, storage)
    page = user.get(f"/app/jobs/{job_id}").text
    assert "every 3s" not in page, "nothing changes any more"
    for said in ("Passed the safety gate", "3.9 %", "before 77.7 %", "random mask", "4,056,170", "4,213"):
        assert said in page, said
    for drawing in ("report-intervals", "report-frontier", "report-sparsity"):
        assert f'id="{drawing}-title"' in page
    assert "2" * 64 in page, "hashes"

    assert user.get(f"/app/jobs/{job_id}/adapter").content == b"tar!"
    assert user.get(f"/app/jobs/{job_id}/adapter/README.md").content == b"ar"
    (result,) = re.findall(rf"/app/jobs/{job_id}/results/([\w-]+)", page)
    answer = user.get(f"/app/jobs/{job_id}/results/{result}")
    assert answer.content == b"step\n"
    assert "step_metrics.csv" in answer.headers["content-disposition"]
    assert user.get(f"/app/jobs/{job_id}/results/file-none").status_code == 404

    report = user.get(f"/app/jobs/{job_id}/report")
    assert "What this report does not promise" in report.text
    assert "content-disposition" not in report.headers
    saved = user.get(f"/app/jobs/{job_id}/report?download=true").headers["content-disposition"]
    assert saved == f'attachment; filename="safety-report-{job_id}.html"'


def test_an_operator_reads_the_report_and_takes_no_weights(
    operator: Browser, database: Database, tenant: Tenant, storage: Storage
) -> None:
    job_id = released(database, tenant, storage)
    page = operator.get(f"/dashboard/jobs/{job_id}").text
    assert "Passed the safety gate" in page
    assert operator.get(f"/dashboard/jobs/{job_id}/report").status_code == 200
    assert f"/dashboard/jobs/{job_id}/adapter" not in page
    assert operator.get(f"/dashboard/jobs/{job_id}/adapter").status_code == 404
    assert f"/dashboard/jobs/{job_id}/results" not in page


def test_a_job_without_a_report(user: Browser, database: Database, tenant: Tenant) -> None:
    job_id = job(
        database, tenant, status="failed", stage="train", error_code="non_finite_loss",
        error_message="the loss is <not> a number", finished_at=1.0,
    )  # fmt: skip
    page = user.get(f"/app/jobs/{job_id}").text
    assert "the loss is &lt;not&gt; a number" in page
    assert "You can change something about it" in page
    assert "so there is none. Nothing was released." in page
    assert user.get(f"/app/jobs/{job_id}/report").status_code == 404


def test_lineage_and_checkpoints(user: Browser, database: Database, tenant: Tenant) -> None:
    with database.transaction() as session:
        first = make_job(session, tenant.project_id, status="failed", finished_at=2.0, created_at=1.0)
        checkpoint = make_checkpoint(session, first, step=60)
        second = make_job(
            session,
            tenant.project_id,
            cloned_from=first.id,
            from_checkpoint=checkpoint.id,
            starts_from={"job_id": first.id},
        )
    page = user.get(f"/app/jobs/{first.id}").text
    assert f'href="/app/jobs/{second.id}"' in page
    assert "60" in page
    page = user.get(f"/app/jobs/{second.id}").text
    assert page.count(f'href="/app/jobs/{first.id}"') == 2
    assert checkpoint.id in page
    assert "data-curve" not in page, "it trains nothing"


def test_settings_that_differ_are_marked(user: Browser, database: Database, tenant: Tenant) -> None:
    job_id = job(database, tenant)
    with database.transaction() as session:
        row = session.get_one(Job, job_id)
        train = {**row.spec["train"], "n_epochs": 5, "early_stopping": {"patience": 2, "min_delta": 0.0}}
        row.spec = {"lora": {**row.spec["lora"], "r": 32}, "train": train}
    text = " ".join(re.sub(r"<[^>]+>", " ", user.get(f"/app/jobs/{job_id}").text).split())
    assert "Epochs 5 instead of 3" in text
    assert "Rank of the adapter 32 instead of 16" in text
    assert "Early stopping patience 2, min delta 0 instead of no" in text
    assert text.count("changed") == 3


def test_old_jobs_show_what_they_have(
    user: Browser, operator: Browser, database: Database, tenant: Tenant
) -> None:
    job_id = job(
        database, tenant, status="succeeded", stage="publish", attempt_count=1, finished_at=5.0,
        spec={"lora": {"r": 8}, "train": {}}, safety_report={"alpha": 0.1},
    )  # fmt: skip
    for browser, root in ((user, "/app"), (operator, "/dashboard")):
        page = browser.get(f"{root}/jobs/{job_id}")
        assert page.status_code == 200
        assert "No verdict is recorded" in page.text
        assert "older than this list" in page.text


# Watching.


# Who may see it.
