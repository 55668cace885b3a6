"""Jobs over HTTP: listing, filtering, cancelling, events, the report."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import event, text

from service.db import Database
from service.jobs import lease, repository
from service.jobs.events import add_event
from service.jobs.repository import JobFilters
from service.jobs.states import TERMINAL, Stage, Status
from service.models import Job
from tests.builders import (
    BASE_ID,
    Tenant,
    get_job,
    make_adapter,
    make_base,
    make_job,
    make_queued_job,
    make_tenant,
)

sqlite_only = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


def listed(client: TestClient, tenant: Tenant, query: str = "") -> list[str]:
    answer = client.get(f"/fine_tuning/jobs{query}", headers=tenant.headers)
    assert answer.status_code == 200, answer.text
    return [job["id"] for job in answer.json()["data"]]


def test_listing_pages_newest_first(client: TestClient, database: Database, tenant: Tenant) -> None:
    with database.transaction() as session:
        for i, created_at in enumerate([1.0, 2.0, 2.0, 3.0]):
            make_job(session, tenant.project_id, id=f"ftjob-{i}", created_at=created_at)
    expected = ["ftjob-3", "ftjob-2", "ftjob-1", "ftjob-0"]
    assert listed(client, tenant) == expected
    found: list[str] = []
    for _ in range(4):
        after = f"&after={found[-1]}" if found else ""
        found += listed(client, tenant, f"?limit=1{after}")
    assert found == expected
    last = client.get(f"/fine_tuning/jobs?limit=1&after={expected[2]}", headers=tenant.headers).json()
    assert last["has_more"] is False


def test_filtering_by_metadata(client: TestClient, database: Database, tenant: Tenant) -> None:
    values: dict[str, dict[str, str] | None] = {
        "ftjob-a": {"team": "red", "run": "1"},
        "ftjob-b": {"team": "red", "run": "2"},
        "ftjob-c": {"team's [x].y": "ü & 'quote'"},
        "ftjob-d": None,
    }
    with database.transaction() as session:
        for i, (id, metadata) in enumerate(values.items()):
            make_job(session, tenant.project_id, id=id, user_metadata=metadata, created_at=float(i))
    assert listed(client, tenant, "?metadata[team]=red") == ["ftjob-b", "ftjob-a"]
    assert listed(client, tenant, "?metadata%5Bteam%5D=red&metadata%5Brun%5D=1") == ["ftjob-a"]
    assert listed(client, tenant, "?metadata[team]=blue") == []
    assert listed(client, tenant, "?metadata=null") == ["ftjob-d"]
    quoted = "?metadata%5Bteam%27s%20%5Bx%5D.y%5D=%C3%BC%20%26%20%27quote%27"
    assert listed(client, tenant, quoted) == ["ftjob-c"]


def test_a_job_shows_its_progress_its_error_and_its_model(
    client: TestClient, database: Database, tenant: Tenant
) -> None:
    progress = {"step": 3, "total_steps": 9, "loss": 0.5, "seconds_remaining": 12.0}
    with database.transaction() as session:
        running = make_job(
            session, tenant.project_id, status="running", stage="train", progress=progress, attempt_count=2
        ).id
        failed = make_job(
            session,
            tenant.project_id,
            status="failed",
            stage="sanitize",
            finished_at=12.9,
            error_code="safety_gate_failed",
            error_message="no strength met the gate",
            safety_report={"summary": {"harmful_score": {"after": 50.0}}, "frontier": []},
            log_tail="Traceback /secret",
        ).id
        done = make_job(session, tenant.project_id, status="succeeded", stage="publish", trained_tokens=5)
        model = make_adapter(session, done).model_id
        done_id = done.id

    def wire(job_id: str) -> dict[str, Any]:
        body: dict[str, Any] = client.get(f"/fine_tuning/jobs/{job_id}", headers=tenant.headers).json()
        return body

    assert wire(running)["progress"] == progress
    assert wire(running)["attempts"] == 2
    assert wire(failed)["error"] == {
        "code": "safety_gate_failed",
        "message": "no strength met the gate",
        "param": None,
    }
    assert (wire(failed)["error_kind"], wire(running)["error_kind"]) == ("user", None)
    assert wire(failed)["safety"] == {"harmful_score": {"after": 50.0}}
    assert wire(failed)["finished_at"] == 12
    assert (wire(done_id)["fine_tuned_model"], wire(done_id)["trained_tokens"]) == (model, 5)
    shown = str([wire(job_id) for job_id in (running, failed, done_id)])
    assert "secret" not in shown
    assert "/nowhere" not in shown, "paths of the base and of its safety profile"


def test_cancelling_in_every_state(client: TestClient, database: Database, tenant: Tenant) -> None:
    for status in Status:
        stages = [Stage.PREPARE] if status is Status.VALIDATING_FILES else list(Stage)
        for stage in stages:
            with database.transaction() as session:
                job_id = make_job(session, tenant.project_id, status=status.value, stage=stage.value).id
            answer = client.post(f"/fine_tuning/jobs/{job_id}/cancel", headers=tenant.headers)
            job = get_job(database, job_id)
            if status in TERMINAL:
                assert answer.status_code == 400, "OpenAI's client would retry a 409"
                assert answer.json()["error"]["code"] == "job_already_terminal"
                assert job.status == status.value
            elif status is Status.RUNNING:
                wire = answer.json()
                assert (wire["status"], wire["cancel_requested"]) == ("running", True)
                assert job.cancel_requested_at is not None
            else:
                wire = answer.json()
                assert (wire["status"], wire["cancel_requested"]) == ("cancelled", True)
                assert wire["finished_at"] is not None
                assert (job.status, job.stage) == ("cancelled", stage.value)


def test_asking_twice_is_asking_once(client: TestClient, database: Database, tenant: Tenant) -> None:
    with database.transaction() as session:
        job_id = make_queued_job(session, tenant.project_id).id
    with database.transaction() as session:
        claim = lease.claim(session, job_id, owner="w", ttl_seconds=60.0, max_attempts=3, now=1.0)
    assert claim is not None
    times = []
    for _ in range(2):
        assert client.post(f"/fine_tuning/jobs/{job_id}/cancel", headers=tenant.headers).status_code == 200
        times.append(get_job(database, job_id).cancel_requested_at)
    assert times[0] == times[1]
    with database.transaction() as session:
        assert lease.heartbeat(session, claim, ttl_seconds=60.0, now=2.0) is lease.StopRequest.CANCEL
    events = client.get(f"/fine_tuning/jobs/{job_id}/events", headers=tenant.headers).json()["data"]
    assert [event["message"] for event in events] == [
        "Cancel requested; the job ends at its next step",
        "Fine-tuning job started",
    ]


def test_a_cancelled_job_is_claimed_by_nobody(client: TestClient, database: Database, tenant: Tenant) -> None:
    with database.transaction() as session:
        job_id = make_queued_job(session, tenant.project_id).id
    client.post(f"/fine_tuning/jobs/{job_id}/cancel", headers=tenant.headers)
    with database.transaction() as session:
        assert lease.claim(session, job_id, owner="w", ttl_seconds=9.0, max_attempts=3, now=1.0) is None


def test_events_page_newest_first(client: TestClient, database: Database, tenant: Tenant) -> None:
    with database.transaction() as session:
        job_id = make_job(session, tenant.project_id).id
        for i in range(25):
            add_event(session, job_id, f"event {i}", now=7.0, type="metrics", data={"step": i})
        other = make_job(session, tenant.project_id)
        add_event(session, other.id, "of another job", now=8.0)
    url = f"/fine_tuning/jobs/{job_id}/events"
    page = client.get(url, headers=tenant.headers).json()
    assert [event["message"] for event in page["data"]] == [f"event {i}" for i in range(24, 4, -1)]
    assert page["has_more"] is True
    first = page["data"][0]
    assert (first["object"], first["type"], first["level"]) == ("fine_tuning.job.event", "metrics", "info")
    assert (first["created_at"], first["data"]) == (7, {"step": 24})
    (plain,) = client.get(f"/fine_tuning/jobs/{other.id}/events", headers=tenant.headers).json()["data"]
    assert (plain["type"], plain["data"]) == ("message", {})
    after = page["data"][-1]["id"]
    page = client.get(url, params={"after": after, "limit": 5}, headers=tenant.headers).json()
    assert [event["message"] for event in page["data"]] == [f"event {i}" for i in range(4, -1, -1)]
    assert page["has_more"] is False


@sqlite_only
def test_the_report_is_readable_also_after_a_refusal(
    client: TestClient, database: Database, tenant: Tenant
) -> None:
    report = {"summary": {}, "frontier": [{"alpha": 0.1, "harmful_score": 33.3}]}
    with database.transaction() as session:
        failed = make_job(session, tenant.project_id, status="failed", safety_report=report).id
        early = make_job(session, tenant.project_id, status="running", stage="train").id
    answer = client.get(f"/fine_tuning/jobs/{failed}/safety_report", headers=tenant.headers)
    assert answer.json() == report
    answer = client.get(f"/fine_tuning/jobs/{early}/safety_report", headers=tenant.headers)
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "report_not_ready"


@sqlite_only
def test_a_later_change_of_the_base_does_not_reach_the_job(database: Database, tenant: Tenant) -> None:
    with database.transaction() as session:
        job_id = make_job(session, tenant.project_id).id
        before = dict(session.get_one(Job, job_id).safety_profile)
    with database.transaction() as session:
        make_base(session, revision="2", path="/elsewhere")
    assert get_job(database, job_id).safety_profile == before


def test_filters_of_ours(client: TestClient, database: Database, tenant: Tenant) -> None:
    states = [("queued", "a"), ("paused", "a"), ("running", "b"), ("succeeded", "b"), ("queued", "b")]
    with database.transaction() as session:
        for base in ("a", "b"):
            make_base(session, id=f"acme/{base}")
        for i, (status, base) in enumerate(states):
            make_job(
                session,
                tenant.project_id,
                id=f"ftjob-{i}",
                status=status,
                base_id=f"acme/{base}",
                created_at=10.5 + i,
                user_metadata={"n": "1"} if i < 2 else None,
            )

    def found(**query: Any) -> str:
        body = client.get("/fine_tuning/jobs", params=query, headers=tenant.headers).json()
        return "".join(job["id"][-1] for job in body["data"])

    assert found(status="queued") == "410"
    assert found(status="paused") == "1"
    assert found(status="running") == "2"
    assert found(status="failed") == ""
    assert found(model="acme/b") == "432"
    assert found(model="acme/x") == ""
    assert found(status="queued", model="acme/a", metadata="null") == ""
    assert found(status="queued", model="acme/a", **{"metadata[n]": "1"}) == "10"
    assert found(status="queued", limit=2) == "41"
    assert found(status="queued", limit=2, after="ftjob-1") == "0"
    shown = int(get_job(database, "ftjob-2").created_at)
    assert found(created_after=shown) == "43", "not the job that shows this time itself"
    assert found(created_before=shown) == "10"
    assert found(created_after=shown - 1, created_before=shown + 1) == "2"


@sqlite_only
@pytest.mark.parametrize(
    "query", ["status=done", "created_after=yesterday", "created_before=-1", "limit=0", "limit=1001"]
)
def test_filters_that_cannot_be(client: TestClient, tenant: Tenant, query: str) -> None:
    answer = client.get(f"/fine_tuning/jobs?{query}", headers=tenant.headers)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, query.split("=", maxsplit=1)[0])


@pytest.mark.parametrize(
    ("filters", "index"),
    [
        ({}, "ix_jobs_listing"),
        ({"statuses": ["failed"]}, "ix_jobs_listing_by_status"),
        ({"model": BASE_ID}, "ix_jobs_listing_by_base"),
    ],
    ids=["all", "status", "model"],
)
def test_a_page_starts_inside_its_index_and_sorts_nothing(
    database: Database, tenant: Tenant, filters: dict[str, Any], index: str
) -> None:
    """So its cost depends on its own size, and neither on that of the table nor on how deep it lies."""
    stranger = make_tenant(database, name="Stranger")
    with database.transaction() as session:
        first = make_job(session, tenant.project_id, created_at=0.0, status="failed")
        names = [column.name for column in Job.__table__.columns if column.name not in ("id", "created_at")]
        columns = ", ".join(f'"{name}"' for name in names)
        numbers = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 5000)"
        # Another project has more at the same times: an index over all projects would read them as well.
        theirs = make_job(session, stranger.project_id, created_at=0.0, status="failed")
        others = [(f"other-{number}-", theirs.id) for number in range(4)]
        for prefix, template in (("ftjob-", first.id), *others):
            chosen = f"SELECT :prefix || CAST(n.i AS TEXT), n.i, {columns} FROM jobs, n WHERE jobs.id = :id"
            insert = f"INSERT INTO jobs (id, created_at, {columns}) {numbers} {chosen}"
            session.execute(text(insert), {"id": template, "prefix": prefix})
        session.execute(text("ANALYZE"))

    seen: list[tuple[str, Any]] = []

    def remember(
        _connection: Any, _cursor: Any, statement: str, parameters: Any, _context: Any, _many: bool
    ) -> None:
        seen.append((statement, parameters))

    event.listen(database.engine, "before_cursor_execute", remember)
    with database.snapshot() as session:
        after = (2500.0, "ftjob-2500")
        views, _ = repository.list_jobs(
            session, tenant.project_id, filters=JobFilters(**filters), after=after, limit=20
        )
        assert [view.job.id for view in views] == [f"ftjob-{i}" for i in range(2499, 2479, -1)]
        statement, parameters = next(pair for pair in seen if "FROM jobs" in pair[0])
        sqlite = database.engine.dialect.name == "sqlite"
        explain = "EXPLAIN QUERY PLAN" if sqlite else "EXPLAIN"
        rows = session.connection().exec_driver_sql(f"{explain} {statement}", parameters)
        plan = "\n".join(row[-1] for row in rows)
    if sqlite:
        assert f"SEARCH jobs USING INDEX {index} (" in plan, plan
        assert "(created_at,id)<(?,?)" in plan, "it begins at the cursor"
        assert "TEMP B-TREE" not in plan, plan
    else:
        # All jobs match here, so that the shortest index does as well.
        assert "Index Scan Backward using ix_jobs_listing" in plan, plan
        assert "(ROW(created_at, (id)::text) < ROW(" in plan, "it begins at the cursor"
        assert "Sort" not in plan, plan
