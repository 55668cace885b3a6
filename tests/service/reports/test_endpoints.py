"""GET /v1/fine_tuning/jobs/{id}/report, and what is rendered from rows."""

from __future__ import annotations

import base64
import hashlib
import re

import pytest
from fastapi.testclient import TestClient

from service.db import Database
from service.models import Job
from service.reports.rendering import render_released, render_report, report_fragments
from tests.builders import DATA_SHA256, Tenant, get_job, make_adapter, make_file, make_job, make_sibling
from tests.service.reports.builders import Document, facts, report


def finished(database: Database, tenant: Tenant, **overrides: object) -> str:
    with database.transaction() as session:
        values = {
            "status": "succeeded",
            "stage": "publish",
            "safety_report": report(),
            "started_at": 10.0,
            "finished_at": 20.0,
            "attempt_count": 3,
            "suffix": "my-<suffix>",
            "user_metadata": {"team": "<b>red</b>"},
            "spec": dict(facts().spec),
            "stage_outputs": {
                "prepare": dict(facts().prepared),
                "sanitize": {"record": dict(facts().record)},
            },
            "training_file_id": make_file(session, tenant.project_id, filename="a&b.jsonl").id,
            "cloned_from": "ftjob-original",
            **overrides,
        }
        job = make_job(session, tenant.project_id, **values)
        if job.status == "succeeded":
            make_adapter(session, job, signing_public_key="-----BEGIN PUBLIC KEY-----")
        return job.id


def test_the_page_of_a_job(client: TestClient, database: Database, tenant: Tenant) -> None:
    job_id = finished(database, tenant)
    answer = client.get(f"/fine_tuning/jobs/{job_id}/report", headers=tenant.headers)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    text = Document(answer.text).text
    for shown in (
        job_id,
        "Passed the safety gate",
        "a&b.jsonl",
        "my-<suffix>",
        "<b>red</b>",
        "ftjob-original",
        "2 099 conversations to train on",
        "216 of 19 558",
        "The released package is signed",
        "1 January 1970, 00:00:20 UTC",
        "Attempts 3",
        DATA_SHA256,
    ):
        assert shown in text, shown
    assert "content-disposition" not in answer.headers


def test_only_the_pages_own_style_is_allowed(client: TestClient, database: Database, tenant: Tenant) -> None:
    job_id = finished(database, tenant)
    answer = client.get(f"/fine_tuning/jobs/{job_id}/report", headers=tenant.headers)
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; ")
    assert "frame-ancestors 'none'" in policy
    (style,) = re.findall(r"<style>(.*?)</style>", answer.text, flags=re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"style-src 'sha256-{digest}'" in policy
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_downloading_gives_it_a_name(client: TestClient, database: Database, tenant: Tenant) -> None:
    job_id = finished(database, tenant)
    url = f"/fine_tuning/jobs/{job_id}/report"
    saved = client.get(url, params={"download": "1"}, headers=tenant.headers)
    assert saved.headers["content-disposition"] == f'attachment; filename="safety-report-{job_id}.html"'
    assert saved.text == client.get(url, headers=tenant.headers).text
    refused = client.get(url, params={"download": "maybe"}, headers=tenant.headers)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "download")


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_page_that_the_browser_has_is_not_sent_again(
    client: TestClient, database: Database, tenant: Tenant
) -> None:
    job_id = finished(database, tenant)

    def ask(**headers: str) -> tuple[int, str]:
        answer = client.get(f"/fine_tuning/jobs/{job_id}/report", headers=tenant.headers | headers)
        assert answer.headers["cache-control"] == "private, no-cache"
        assert (answer.text == "") is (answer.status_code == 304)
        return answer.status_code, answer.headers["etag"]

    status, etag = ask()
    assert status == 200
    assert ask(**{"if-none-match": f'"other", W/{etag}'}) == (304, etag)
    assert ask(**{"if-none-match": "*"}) == (304, etag)
    assert ask(**{"if-none-match": '"other"', "if-match": '"other"'}) == (200, etag)
    with database.transaction() as session:
        session.get_one(Job, job_id).attempt_count = 4
    status, changed = ask(**{"if-none-match": etag})
    assert status == 200
    assert changed != etag


def test_a_job_without_a_report(client: TestClient, database: Database, tenant: Tenant) -> None:
    with database.transaction() as session:
        job_id = make_job(session, tenant.project_id).id
    answer = client.get(f"/fine_tuning/jobs/{job_id}/report", headers=tenant.headers)
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "report_not_ready"
    with database.snapshot() as session, pytest.raises(ValueError, match="no safety report yet"):
        render_report(session, session.get_one(Job, job_id))


def test_a_sibling_project_finds_nothing(client: TestClient, database: Database, tenant: Tenant) -> None:
    job_id = finished(database, tenant)
    sibling = make_sibling(database, tenant)
    answer = client.get(f"/fine_tuning/jobs/{job_id}/report", headers=sibling.headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "job_not_found")


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_the_page_in_a_result_file_is_that_of_the_route(database: Database, tenant: Tenant) -> None:
    """But for the moment at which the job ended, which is a little later."""
    running = finished(database, tenant, status="running", finished_at=None)
    with database.snapshot() as session:
        job = session.get_one(Job, running)
        stored = render_released(session, job, report(model_id="ft:m"), package_sha256="d" * 64, signed=True)
    with database.transaction() as session:
        job = session.get_one(Job, running)
        job.status, job.finished_at, job.safety_report = "succeeded", 20.0, report(model_id="ft:m")
        make_adapter(session, job, model_id="ft:m", sha256="d" * 64, signing_public_key="key")
    with database.snapshot() as session:
        later = render_report(session, session.get_one(Job, running))

    def without_end(html: str) -> str:
        return re.sub(r"<dt>Finished</dt><dd>.*?</dd>", "", html)

    assert without_end(stored) == without_end(later)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_the_drawings_alone(database: Database, tenant: Tenant) -> None:
    with_report = get_job(database, finished(database, tenant))
    drawings = report_fragments(with_report)
    for drawing in (drawings.intervals, drawings.frontier, drawings.sparsity):
        assert drawing is not None
        assert drawing.startswith("<svg")
    without = report_fragments(get_job(database, finished(database, tenant, safety_report=None)))
    assert (without.intervals, without.frontier, without.sparsity) == (None, None, None)
