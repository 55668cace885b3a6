from __future__ import annotations

import re

from service.db import Database
from tests.builders import Tenant, make_job, make_tenant
from tests.service.dashboard.conftest import Browser


def test_without_jobs_the_page_says_how_to_begin(user: Browser) -> None:
    text = user.get("/app").text
    assert "Nothing has run yet" in text
    assert 'base_url="http://testserver/v1"' in text


def test_jobs_with_their_state_and_scores(user: Browser, database: Database, tenant: Tenant) -> None:
    report = {"summary": {"harmful_score": {"base": 0.0, "before": 97.5, "after": 1.25}}}
    with database.transaction() as session:
        make_job(
            session,
            tenant.project_id,
            suffix="done",
            status="succeeded",
            stage="publish",
            safety_report=report,
        )
        make_job(
            session,
            tenant.project_id,
            suffix="busy",
            status="running",
            stage="train",
            progress={"step": 30, "total_steps": 120},
        )
        make_job(session, tenant.project_id, suffix="resting", status="paused", stage="train")
    text = user.get("/app").text
    assert "97.5 %" in text
    assert "1.2 %" in text
    assert "step 30 of 120" in text
    assert 'data-state="paused"' in text


def test_the_list_asks_again_only_while_something_is_open(
    user: Browser, database: Database, tenant: Tenant
) -> None:
    with database.transaction() as session:
        job = make_job(session, tenant.project_id, status="running", stage="train")
    text = user.get("/app").text
    url = re.search(r'hx-get="([^"]*)"', text)
    assert url is not None
    live = url.group(1).replace("&amp;", "&")
    assert user.get(live).status_code == 204, "nothing changed"
    with database.transaction() as session:
        row = session.merge(job)
        row.status, row.stage = "succeeded", "publish"
    answer = user.get(live)
    assert answer.status_code == 200
    assert "succeeded" in answer.text
    assert "hx-trigger" not in answer.text


def test_filters(user: Browser, database: Database, tenant: Tenant) -> None:
    with database.transaction() as session:
        make_job(session, tenant.project_id, suffix="good-one", status="succeeded", stage="publish")
        make_job(session, tenant.project_id, suffix="bad-one", status="failed", stage="train")
    text = user.get("/app?status=failed").text
    assert "bad-one" in text
    assert "good-one" not in text
    assert "No job is cancelled" in user.get("/app?status=cancelled").text


def test_other_projects_jobs_are_not_there(user: Browser, database: Database) -> None:
    stranger = make_tenant(database, name="Stranger")
    with database.transaction() as session:
        job = make_job(session, stranger.project_id, suffix="secret")
    assert "secret" not in user.get("/app").text
    assert user.get(f"/app?after={job.id}").status_code == 404
