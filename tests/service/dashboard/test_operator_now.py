from __future__ import annotations

import re
import time

import pytest

from service.dashboard import operator_now
from service.dashboard.queries import now
from service.db import Database
from service.fleet.states import WorkerState
from tests.builders import Tenant, limit_running, make_job, make_queued_job, make_tenant
from tests.service.dashboard.conftest import Browser
from tests.service.dashboard.rows import make_running_job, make_worker


def test_without_anything_it_says_what_to_do(operator: Browser) -> None:
    page = operator.get("/dashboard").text
    assert "No worker has shown itself" in page
    assert "autoclave worker" in page
    assert "No job has been created yet" in page


def test_a_row_for_each_worker(operator: Browser, database: Database, tenant: Tenant) -> None:
    with database.transaction() as session:
        busy = "node-1:7:abc"
        job = make_running_job(session, tenant.project_id, worker_id=busy)
        make_worker(session, id=busy, state=WorkerState.BUSY, job_id=job.id)
        make_worker(session, id="node-2:8:x", host="node-2", pid=8, memory_used_bytes=None)
        adding = {"state": WorkerState.BUSY, "job_id": "basereg_x"}
        make_worker(session, id="node-3:9:y", host="node-3", pid=9, **adding)
    page = operator.get("/dashboard").text
    row = page.split("node-1 · 7")[1].split("</tr>")[0]
    for shown in ("busy", f"/dashboard/jobs/{job.id}", "Tests", "train", "412", "1,400", "18,234"):
        assert shown in row
    assert "60.0 GB" in row
    assert "80.0 GB" in row
    assert "idle" in page.split("node-2 · 8")[1].split("</tr>")[0]
    assert re.search(r"<b>2 of 3</b><span>workers busy", page)
    assert "adds a base" in page.split("node-3 · 9")[1].split("</tr>")[0]
    assert "No running job is stuck" in page


def test_silent_workers_and_jobs_that_do_not_move_stand_out(
    operator: Browser, database: Database, tenant: Tenant
) -> None:
    old = time.time() - 7200
    with database.transaction() as session:
        silent = make_running_job(session, tenant.project_id, worker_id="w", heartbeat_at=old)
        make_worker(session, id="w", state=WorkerState.BUSY, job_id=silent.id, heartbeat_at=old)
        still = make_running_job(
            session, tenant.project_id, worker_id="v", stage_began_at=old, progress_at=old
        )
    page = operator.get("/dashboard").text
    stuck = page.split('id="stuck"')[1]
    assert "worker silent" in stuck.split(silent.id)[2].split("</tr>")[0]
    assert "no step" in stuck.split(still.id)[2].split("</tr>")[0]
    assert 'data-state="bad">silent' in page
    assert re.search(r"<b>0 of 0</b><span>workers busy", page)


def test_the_queue(database: Database, tenant: Tenant) -> None:
    began = time.time() - 500
    limited = make_tenant(database, name="Limited")
    with database.transaction() as session:
        make_queued_job(session, tenant.project_id, created_at=began)
        make_job(session, limited.project_id, created_at=began - 50)
        make_job(session, limited.project_id, status="running", stage="publish")
        limit_running(session, limited.project_id, 1)
        make_job(session, tenant.project_id, status="paused", stage="train")
        make_job(session, tenant.project_id, status="failed", stage="train")
    with database.snapshot() as session:
        seen = now.read(session, now=time.time())
    assert (seen.num_queued, seen.num_held) == (2, 1)
    assert seen.oldest_queued_at == pytest.approx(began, abs=0.2)
    assert seen.by_status["queued"] == {"prepare": 2}
    assert seen.by_status["paused"] == {"train": 1}
    assert seen.ended["failed"] == 1


def test_jobs_that_wait_without_a_worker_are_a_warning(
    operator: Browser, database: Database, tenant: Tenant
) -> None:
    with database.transaction() as session:
        make_queued_job(session, tenant.project_id)
    assert "Jobs wait and no worker is there" in operator.get("/dashboard").text


def test_what_has_not_changed_is_not_sent_again(
    operator: Browser, database: Database, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operator_now, "BOARD_SECONDS", 0.0)
    monkeypatch.setattr("service.dashboard.remembered.SHARE", 1e9)
    first = operator.get("/dashboard").text
    again = re.search(r'hx-get="([^"]+)"', first)
    assert again is not None
    assert operator.get(again[1]).status_code == 204
    with database.transaction() as session:
        make_queued_job(session, tenant.project_id)
    changed = operator.get(again[1])
    assert changed.status_code == 200
    assert "<html" not in changed.text
    assert again[1] not in changed.text
    assert 'hx-trigger="every 3s"' in changed.text


def test_the_board_is_made_once_for_all(
    operator: Browser, database: Database, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within the moment for which it is remembered; opening the page makes it anew."""
    monkeypatch.setattr(operator_now, "BOARD_SECONDS", 600.0)
    operator.get("/dashboard")
    with database.transaction() as session:
        job = make_running_job(session, tenant.project_id, worker_id="w", heartbeat_at=1.0)
    assert job.id not in operator.get("/dashboard/live").text
    assert job.id in operator.get("/dashboard").text
    assert job.id in operator.get("/dashboard/live").text


def test_what_is_remembered_holds_nothing_of_who_looked(operator: Browser) -> None:
    fragment = operator.get("/dashboard/live").text
    assert "csrf" not in fragment
    assert operator.token() not in fragment


@pytest.mark.parametrize(
    "path",
    [
        "/dashboard",
        "/dashboard/live",
        "/dashboard/jobs",
        "/dashboard/safety",
        "/dashboard/tenants",
        "/dashboard/health",
        "/dashboard/audit",
        "/dashboard/audit.csv",
    ],
)
def test_only_operators_see_it(browser: Browser, tenant: Tenant, path: str) -> None:
    assert browser.get(path).headers["location"].startswith("/signin?next=/dashboard")
    browser.sign_in(tenant.key)
    refused = browser.get(path)
    assert refused.status_code == 403
    assert tenant.project_id not in refused.text
