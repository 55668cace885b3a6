"""Queue positions and estimates on both databases: measured or null."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi.testclient import TestClient

from service.db import Database
from service.jobs import estimates, lease
from service.jobs.estimates import later_stages_seconds
from service.jobs.states import Stage
from service.models import Job
from tests.builders import Tenant, get_job, make_base, make_job, make_queued_job, make_tenant

SECONDS = {"prepare": 1.0, "train": 50.0, "sanitize": 10.0, "evaluate": 20.0, "publish": 3.0}


def positions(client: TestClient, tenant: Tenant) -> dict[str, int | None]:
    """By id, once from the list and once from each job: they must agree."""
    jobs = client.get("/fine_tuning/jobs", headers=tenant.headers).json()["data"]
    listed = {job["id"]: job["queue_position"] for job in jobs}
    single = {
        id: client.get(f"/fine_tuning/jobs/{id}", headers=tenant.headers).json()["queue_position"]
        for id in listed
    }
    assert single == listed
    return listed


def test_positions_count_every_tenants_jobs(client: TestClient, database: Database, tenant: Tenant) -> None:
    other = make_tenant(database)
    with database.transaction() as session:
        make_queued_job(session, tenant.project_id, id="ftjob-b", created_at=2.0)
        make_queued_job(session, other.project_id, id="ftjob-x", created_at=1.0)
        make_queued_job(session, tenant.project_id, id="ftjob-c", created_at=2.0)
        make_job(session, tenant.project_id, id="ftjob-p", created_at=0.5, status="paused")
        make_job(session, tenant.project_id, id="ftjob-r", created_at=0.5, status="running")
        make_job(session, tenant.project_id, id="ftjob-s", created_at=0.5, status="succeeded")
    none = dict.fromkeys(("ftjob-p", "ftjob-r", "ftjob-s"))
    assert positions(client, tenant) == {"ftjob-b": 2, "ftjob-c": 3, **none}
    # The first is paused and resumed: it stands at the end.
    for action in ("pause", "resume"):
        client.post(f"/fine_tuning/jobs/ftjob-b/{action}", headers=tenant.headers)
    assert positions(client, tenant) == {"ftjob-c": 2, "ftjob-b": 3, **none}
    with database.transaction() as session:
        lease.claim(session, "ftjob-x", owner="w", ttl_seconds=9.0, max_attempts=3, now=1.0)
    assert positions(client, tenant) == {"ftjob-c": 1, "ftjob-b": 2, **none}


def test_far_back_is_not_counted(
    client: TestClient, database: Database, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimates, "COUNTED_POSITIONS", 2)
    with database.transaction() as session:
        for i in range(4):
            make_queued_job(session, tenant.project_id, id=f"ftjob-{i}", created_at=float(i))
    assert positions(client, tenant) == {"ftjob-0": 1, "ftjob-1": 2, "ftjob-2": None, "ftjob-3": None}


def done(database: Database, tenant: Tenant, factor: float, **columns: Any) -> None:
    seconds = {stage: factor * value for stage, value in SECONDS.items()}
    with database.transaction() as session:
        make_job(
            session,
            tenant.project_id,
            **{"status": "succeeded", "stage": "publish", "finished_at": 5.0, "stage_seconds": seconds}
            | columns,
        )


def later(database: Database, tenant: Tenant, stage: Stage) -> float | None:
    with database.transaction() as session:
        job = make_job(session, tenant.project_id, status="running", stage=stage.value)
        return later_stages_seconds(session, job.id)


def test_later_stages_are_what_they_took_others(database: Database, tenant: Tenant) -> None:
    assert later(database, tenant, Stage.TRAIN) is None, "no job has succeeded yet"
    assert later(database, tenant, Stage.PUBLISH) == 0.0
    for factor in (1.0, 2.0, 30.0):
        done(database, tenant, factor)
    assert later(database, tenant, Stage.TRAIN) == 66.0
    assert later(database, tenant, Stage.EVALUATE) == 6.0


def test_other_bases_failures_and_partial_figures_do_not_count(database: Database, tenant: Tenant) -> None:
    with database.transaction() as session:
        make_base(session, id="another")
    done(database, tenant, 1.0, base_id="another")
    done(database, tenant, 1.0, status="failed")
    done(database, tenant, 1.0, base_sha256="e" * 64)
    done(database, tenant, 1.0, stage_seconds={"prepare": 1.0, "train": 1.0})
    done(database, tenant, 1.0, stage_seconds=None)
    assert later(database, tenant, Stage.TRAIN) is None


def test_stages_are_timed(database: Database, tenant: Tenant) -> None:
    with database.transaction() as session:
        job_id = make_queued_job(session, tenant.project_id).id
    with database.transaction() as session:
        claim = lease.claim(session, job_id, owner="w", ttl_seconds=9.0, max_attempts=3, now=100.0)
        assert claim is not None
        lease.finish_stage(session, claim, Stage.PREPARE, output={}, now=103.0)
        lease.finish_stage(session, claim, Stage.TRAIN, output={}, now=110.0)
    assert get_job(database, job_id).stage_seconds == {"prepare": 3.0, "train": 7.0}


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_the_estimate_is_shown_while_the_job_runs(
    client: TestClient, database: Database, tenant: Tenant
) -> None:
    with database.transaction() as session:
        job_id = make_queued_job(session, tenant.project_id).id
    with database.transaction() as session:
        claim = lease.claim(session, job_id, owner="w", ttl_seconds=9.0, max_attempts=3, now=1.0)
        session.get_one(Job, job_id).estimated_finish_at = 123.4

    def shown() -> int | None:
        body = client.get(f"/fine_tuning/jobs/{job_id}", headers=tenant.headers).json()
        found: int | None = body["estimated_finish"]
        return found

    assert shown() == 124
    assert claim is not None
    with database.transaction() as session:
        lease.hand_back(session, claim, reason="x", now=2.0)
    assert shown() is None, "nobody knows when it goes on"
