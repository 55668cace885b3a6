"""Buttons of the job page, on both databases: what happens, who may, what is written down."""

from __future__ import annotations

import re
import time
from typing import Any

import pytest

from service.db import Database
from service.models import Job, ProjectQuota
from tests.builders import Tenant, audit_entries, get_job, make_checkpoint, make_job, make_queued_job
from tests.service.dashboard.conftest import Browser
from tests.service.dashboard.reports import make_report


def queued(database: Database, tenant: Tenant, **columns: Any) -> str:
    with database.transaction() as session:
        return make_queued_job(session, tenant.project_id, **columns).id


def entries(database: Database) -> list[tuple[str, str, str]]:
    with database.snapshot() as session:
        found = [entry for entry in audit_entries(session) if entry.action.startswith("job.")]
    return [(entry.action, entry.object_id, entry.actor.split("_")[0]) for entry in found]


def events(browser: Browser, path: str) -> str:
    return str(browser.get(f"{path}/events").text)


def test_pause_resume_cancel(user: Browser, database: Database, tenant: Tenant) -> None:
    job_id = queued(database, tenant)
    path = f"/app/jobs/{job_id}"
    assert "do-resume" not in user.get(path).text
    answer = user.post(f"{path}/pause")
    assert (answer.status_code, answer.headers["location"]) == (303, path)
    assert get_job(database, job_id).status == "paused"
    assert "do-pause" not in user.get(path).text
    assert user.post(f"{path}/resume").status_code == 303
    assert get_job(database, job_id).status == "queued"
    assert user.post(f"{path}/cancel").status_code == 303
    assert get_job(database, job_id).status == "cancelled"
    assert "do-cancel" not in user.get(path).text
    assert entries(database) == [
        ("job.paused", job_id, "key"),
        ("job.resumed", job_id, "key"),
        ("job.cancelled", job_id, "key"),
    ]
    assert "operator" not in events(user, path)


def test_what_a_running_job_was_asked(user: Browser, database: Database, tenant: Tenant) -> None:
    job_id = queued(database, tenant, status="running", stage="train")
    path = f"/app/jobs/{job_id}"
    user.post(f"{path}/pause")
    page = user.get(path).text
    assert "It was asked to pause" in page
    assert "do-resume" in page
    user.post(f"{path}/cancel")
    page = user.get(path).text
    assert "It was asked to stop" in page
    assert "do-cancel" not in page


@pytest.mark.parametrize("deed", ["cancel", "pause", "resume"])
def test_an_ended_job_says_so_on_its_page(
    user: Browser, operator: Browser, database: Database, tenant: Tenant, deed: str
) -> None:
    job_id = queued(database, tenant, status="succeeded", finished_at=1.0)
    for browser, root in ((user, "/app"), (operator, "/dashboard")):
        answer = browser.post(f"{root}/jobs/{job_id}/{deed}")
        assert answer.status_code == 400
        assert "has already succeeded" in answer.text
        assert 'role="alert"' in answer.text
        assert 'id="live"' in answer.text, "the page is still there"
        again = browser.get(f"{root}/jobs/{job_id}/{deed}")
        assert (again.status_code, again.headers["location"]) == (303, f"{root}/jobs/{job_id}")
    assert entries(database) == []


def test_run_again(user: Browser, database: Database, tenant: Tenant) -> None:
    job_id = queued(database, tenant, status="failed", finished_at=1.0)
    (changed,) = re.findall(r'href="(/app/new\?clone=[^"]*)"', user.get(f"/app/jobs/{job_id}").text)
    assert user.get(changed).status_code == 200
    answer = user.post(f"/app/jobs/{job_id}/retry")
    assert answer.status_code == 303
    new_id = answer.headers["location"].removeprefix("/app/jobs/")
    assert get_job(database, new_id).cloned_from == job_id
    assert entries(database) == [("job.retried", job_id, "key")]


def test_run_again_beyond_the_quota(
    user: Browser, operator: Browser, database: Database, tenant: Tenant
) -> None:
    job_id = queued(database, tenant)
    with database.transaction() as session:
        session.add(ProjectQuota(project_id=tenant.project_id, queued_jobs=1))
    for browser, root in ((user, "/app"), (operator, "/dashboard")):
        answer = browser.post(f"{root}/jobs/{job_id}/retry")
        assert answer.status_code == 429
        assert "quota queued_jobs is used up" in answer.text


def test_a_form_without_the_token_does_nothing(
    user: Browser, operator: Browser, database: Database, tenant: Tenant
) -> None:
    job_id = queued(database, tenant)
    for browser, root in ((user, "/app"), (operator, "/dashboard")):
        for deed in ("cancel", "pause", "retry"):
            assert browser.post(f"{root}/jobs/{job_id}/{deed}", token="wrong").status_code == 403
    assert operator.post(f"/dashboard/jobs/{job_id}/release", token="").status_code == 403
    assert get_job(database, job_id).status == "queued"
    assert entries(database) == []


def test_an_operator_acts_on_anybodys_job(
    user: Browser, operator: Browser, database: Database, tenant: Tenant
) -> None:
    job_id = queued(database, tenant)
    path = f"/dashboard/jobs/{job_id}"
    for deed in ("pause", "resume", "cancel"):
        answer = operator.post(f"{path}/{deed}")
        assert (answer.status_code, answer.headers["location"]) == (303, path)
    answer = operator.post(f"{path}/retry")
    new_id = answer.headers["location"].removeprefix("/dashboard/jobs/")
    assert get_job(database, new_id).project_id == tenant.project_id
    assert entries(database) == [
        ("job.paused", job_id, "opkey"),
        ("job.resumed", job_id, "opkey"),
        ("job.cancelled", job_id, "opkey"),
        ("job.retried", job_id, "opkey"),
    ]
    with database.snapshot() as session:
        found = [entry for entry in audit_entries(session) if entry.action.startswith("job.")]
    assert {entry.project_id for entry in found} == {tenant.project_id}
    told = events(user, f"/app/jobs/{job_id}")
    for text in ("An operator paused the job", "An operator cancelled the job", f"again as job {new_id}"):
        assert text in told


def gated(database: Database, tenant: Tenant, **columns: Any) -> str:
    kept = {"train": {"prefix": "private/x", "adapter_sha256": "a" * 64, "steps": 1}}
    with database.transaction() as session:
        return make_job(
            session,
            tenant.project_id,
            **{
                "status": "failed",
                "stage": "sanitize",
                "error_code": "safety_gate_failed",
                "error_message": "missed",
                "finished_at": time.time(),
                "stage_outputs": kept,
                "safety_report": make_report(passed=False),
                **columns,
            },
        ).id


def test_release_with_a_reason(user: Browser, operator: Browser, database: Database, tenant: Tenant) -> None:
    job_id = gated(database, tenant)
    assert "do-release" not in user.get(f"/app/jobs/{job_id}").text
    path = f"/dashboard/jobs/{job_id}"
    assert "do-release" in operator.get(path).text
    answer = operator.post(f"{path}/release", {"reason": "a red team asked <for> it"})
    assert answer.status_code == 303
    new_id = answer.headers["location"].removeprefix("/dashboard/jobs/")
    new = get_job(database, new_id)
    assert (new.cloned_from, (new.gate_waived or {})["reason"]) == (job_id, "a red team asked <for> it")
    assert entries(database) == [("job.gate_waived", job_id, "opkey")]
    assert "a red team asked &lt;for&gt; it" in events(user, f"/app/jobs/{new_id}")
    assert "gate waived by an operator" in operator.get(f"/dashboard/jobs/{new_id}").text
    assert f"/dashboard/jobs/{new_id}" in operator.get(path).text
    again = operator.post(f"{path}/release", {"reason": "twice"})
    assert again.headers["location"] == f"/dashboard/jobs/{new_id}", "asked again, the same job"


@pytest.mark.parametrize(
    ("columns", "reason", "said"),
    [
        ({}, " ", "the reason is empty"),
        ({}, "x" * 1001, "1000 are allowed"),
        ({}, "two\nlines", "one line of text"),
        ({"finished_at": 1.0}, "late", "is not kept any more"),
        ({"error_code": "worker_lost"}, "other", "did not miss the safety gate"),
        ({"status": "running", "error_code": None}, "other", "did not miss the safety gate"),
    ],
)
def test_a_release_that_is_refused(
    operator: Browser, database: Database, tenant: Tenant, columns: dict[str, Any], reason: str, said: str
) -> None:
    job_id = gated(database, tenant, **columns)
    answer = operator.post(f"/dashboard/jobs/{job_id}/release", {"reason": reason})
    assert answer.status_code == 400
    assert said in answer.text
    assert entries(database) == []
    back = operator.get(f"/dashboard/jobs/{job_id}/release")
    assert back.headers["location"] == f"/dashboard/jobs/{job_id}"


def test_users_release_nothing(user: Browser, database: Database, tenant: Tenant) -> None:
    job_id = gated(database, tenant)
    with database.transaction() as session:
        make_checkpoint(session, session.get_one(Job, job_id))
    assert user.post(f"/app/jobs/{job_id}/release", {"reason": "mine"}).status_code == 404
    assert user.post(f"/dashboard/jobs/{job_id}/release", {"reason": "mine"}).status_code == 403
    assert entries(database) == []
