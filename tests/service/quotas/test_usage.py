"""What a project used, booked and shown; limits that come from the settings."""

from __future__ import annotations

import time
from datetime import UTC, datetime

import pytest
from fastapi.testclient import TestClient
from openai import OpenAI, RateLimitError
from sqlalchemy import select, text

from service.app import create_app
from service.db import Database
from service.jobs import lease
from service.jobs.states import Stage
from service.models import GpuUsage, Job
from service.quotas import usage
from service.settings import Settings
from service.storage import Storage
from tests.builders import (
    Tenant,
    dataset,
    get_job,
    make_file,
    make_job,
    make_queued_job,
    make_tenant,
)
from tests.service.quotas.test_quotas import NOW, allow, new_job, post_file, refused, used


def test_gpu_seconds(client: TestClient, database: Database, tenant: Tenant) -> None:
    allow(database, tenant, gpu_seconds=100)
    body = new_job(database, tenant)
    now = time.time()
    with database.transaction() as session:
        session.add(GpuUsage(project_id=tenant.project_id, day=usage.day_of(now), seconds=60.0))
        before = usage.month_start(now) - 1
        session.add(GpuUsage(project_id=tenant.project_id, day=usage.day_of(before), seconds=999.0))
    assert used(client, tenant, "gpu_seconds") == 60
    assert client.post("/fine_tuning/jobs", json=body, headers=tenant.headers).status_code == 200
    with database.transaction() as session:
        make_job(session, tenant.project_id, status="running", stage_began_at=now - 41)
    refused(client.post("/fine_tuning/jobs", json=body, headers=tenant.headers), "gpu_seconds")


def test_running_time_is_booked_by_stage_and_attempt(database: Database, tenant: Tenant) -> None:
    day = usage.day_of(NOW)

    def booked() -> dict[int, float]:
        with database.snapshot() as session:
            return {row.day: row.seconds for row in session.scalars(select(GpuUsage))}

    def claim(now: float) -> lease.Claim:
        with database.transaction() as session:
            held = lease.claim(session, job_id, owner="w", ttl_seconds=60.0, max_attempts=9, now=now)
        assert held is not None
        return held

    with database.transaction() as session:
        job_id = make_queued_job(session, tenant.project_id).id
    held = claim(NOW)
    assert booked() == {}
    with database.snapshot() as session:
        assert usage.gpu_seconds(session, tenant.project_id, now=NOW + 3) == 3
    with database.transaction() as session:
        lease.heartbeat(session, held, ttl_seconds=60.0, now=NOW + 5)
        lease.finish_stage(session, held, Stage.PREPARE, output={}, now=NOW + 10)
    assert booked() == {day: 10.0}
    with database.transaction() as session:
        lease.hand_back(session, held, reason="x", now=NOW + 30)
    assert booked() == {day: 30.0}
    # Waiting costs nothing; a lost worker's time ends with its lease, whenever that is seen.
    claim(NOW + 1000)
    with database.transaction() as session:
        (job,) = lease.expired(session, now=NOW + 5000)
        lease.reap(session, job, max_attempts=9, now=NOW + 5000)
    assert booked() == {day: 90.0}
    claim(NOW + 86400)
    with database.transaction() as session:
        (job,) = lease.expired(session, now=NOW + 90000)
        lease.reap(session, job, max_attempts=1, now=NOW + 90000)
    assert get_job(database, job_id).status == "failed"
    assert sum(booked().values()) == 150
    with database.snapshot() as session:
        assert usage.gpu_seconds(session, tenant.project_id, now=NOW + 90000) == 150
        assert usage.gpu_seconds(session, tenant.project_id, now=usage.next_month_start(NOW)) == 0


def test_months() -> None:
    def at(*moment: int) -> float:
        return datetime(*moment, tzinfo=UTC).timestamp()  # type: ignore[arg-type, misc]

    assert usage.month_start(at(2026, 12, 31, 23, 59)) == at(2026, 12, 1)
    assert usage.next_month_start(at(2026, 12, 31, 23, 59)) == at(2027, 1, 1)
    assert usage.next_month_start(at(2026, 2, 1)) == at(2026, 3, 1)


def test_usage_shows_ones_own(client: TestClient, database: Database, tenant: Tenant) -> None:
    stranger = make_tenant(database)
    with database.transaction() as session:
        make_file(session, tenant.project_id, bytes=7)
    allow(database, tenant, storage_bytes=70, concurrent_jobs=0)
    shown = client.get("/usage", headers=tenant.headers).json()
    assert (shown["object"], shown["project_id"]) == ("usage", tenant.project_id)
    assert set(shown["quotas"]) == {
        "storage_bytes",
        "concurrent_jobs",
        "queued_jobs",
        "jobs_per_day",
        "gpu_seconds",
        "reads_per_minute",
        "writes_per_minute",
        "uploads_per_minute",
    }
    assert shown["quotas"]["storage_bytes"] == {"used": 7, "limit": 70, "resets_at": None}
    assert shown["quotas"]["concurrent_jobs"] == {"used": 0, "limit": None, "resets_at": None}
    assert shown["quotas"]["queued_jobs"] == {"used": 0, "limit": 1000, "resets_at": None}
    assert shown["quotas"]["gpu_seconds"]["resets_at"] == usage.next_month_start(time.time())
    assert shown["quotas"]["reads_per_minute"] == {"used": None, "limit": None, "resets_at": None}
    assert used(client, stranger, "storage_bytes") == 0


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_the_unmodified_client_does_not_try_again_in_vain(
    api_url: str, database: Database, tenant: Tenant
) -> None:
    allow(database, tenant, storage_bytes=10)
    with OpenAI(base_url=api_url, api_key=tenant.key, _strict_response_validation=True) as client:
        began = time.monotonic()
        with pytest.raises(RateLimitError) as caught:
            client.files.create(file=dataset(10), purpose="fine-tune")
        assert time.monotonic() - began < 5
    assert (caught.value.code, caught.value.type) == ("quota_exceeded", "insufficient_quota")


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_settings_are_the_default(
    settings: Settings, database: Database, storage: Storage, tenant: Tenant
) -> None:
    settings = settings.model_copy(update={"quota_storage_bytes": 50})
    with TestClient(
        create_app(settings, database=database, storage=storage), base_url="http://testserver/v1"
    ) as client:
        refused(post_file(client, tenant, b"x" * 51), "storage_bytes")
        allow(database, tenant, storage_bytes=51)
        assert post_file(client, tenant, b"x" * 51).status_code == 200


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_counting_reads_indexes_alone(database: Database, tenant: Tenant) -> None:
    """No row of a table is read to add up what is stored, nor one of a job that is over to count."""
    there = "WHERE project_id = 'p' AND deleted_at IS NULL"
    plans = {
        f"SELECT sum(bytes) FROM files {there}": "ix_files_storage",
        f"SELECT sum(bytes) FROM adapters {there}": "ix_adapters_storage",
        "SELECT count(*) FROM jobs WHERE project_id = 'p' AND status IN ('queued', 'paused')": (
            "ix_jobs_listing_by_status"
        ),
        "SELECT created_at FROM jobs WHERE project_id = 'p' AND created_at > 9 ORDER BY created_at DESC": (
            "ix_jobs_listing"
        ),
    }
    with database.snapshot() as session:
        for query, index in plans.items():
            plan = " ".join(row[-1] for row in session.execute(text(f"EXPLAIN QUERY PLAN {query}")))
            assert index in plan, plan
            assert "COVERING INDEX" in plan, plan
            assert "TEMP B-TREE" not in plan, plan
        assert session.scalar(select(Job.id)) is None
