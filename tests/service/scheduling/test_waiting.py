"""What an owner is told about a job that waits: its place by the rule, and why."""

from __future__ import annotations

import time
from typing import Any

import pytest
from fastapi.testclient import TestClient

from service.db import Database
from service.jobs import lease
from service.quotas.limits import Quota
from service.scheduling import lanes
from service.scheduling.workers import Kind, announce
from tests.builders import Tenant, get_job, make_queued_job, make_tenant


def queue(database: Database, tenant: Tenant, at: float, **columns: Any) -> str:
    with database.transaction() as session:
        return make_queued_job(session, tenant.project_id, created_at=at, **columns).id


def shown(client: TestClient, tenant: Tenant, job_id: str) -> dict[str, Any]:
    """The same from the list and alone."""
    job: dict[str, Any] = client.get(f"/fine_tuning/jobs/{job_id}", headers=tenant.headers).json()
    listed = client.get("/fine_tuning/jobs", headers=tenant.headers).json()["data"]
    assert job in listed
    return job


def there_is(database: Database, *kinds: Kind) -> None:
    with database.transaction() as session:
        for kind in kinds:
            announce(session, kind, now=time.time())


def test_the_place_is_that_at_which_workers_would_take_it(
    client: TestClient, database: Database, tenant: Tenant
) -> None:
    others = [make_tenant(database) for _ in range(3)]
    everyone = [tenant, *others]
    ids: dict[str, Tenant] = {}
    for number, (each, count) in enumerate(zip(everyone, (4, 1, 6, 2), strict=True)):
        for i in range(count):
            ids[queue(database, each, 10.0 * number + i)] = each
    with database.transaction() as session:
        lanes.locked(session, others[2].project_id).rank = -1
    places = {job_id: shown(client, each, job_id)["queue_position"] for job_id, each in ids.items()}
    assert sorted(places.values()) == list(range(1, 14))
    taken = []
    for _ in places:
        with database.transaction() as session:
            held = lease.claim_next(session, owner="w", ttl_seconds=9.0, max_attempts=3, now=100.0)
        assert held is not None
        taken.append(held.job_id)
    assert sorted(places, key=lambda job_id: places[job_id]) == taken


def test_why(client: TestClient, database: Database, tenant: Tenant) -> None:
    job_id = queue(database, tenant, 1.0, needed_memory_bytes=30 * 2**30)

    def why() -> dict[str, str]:
        found: dict[str, str] = shown(client, tenant, job_id)["waiting_for"]
        return found

    assert why()["reason"] == "no_worker"
    there_is(database, Kind("default", 24 * 2**30))
    assert why()["reason"] == "memory"
    assert "needs about 30 GiB" in why()["message"]
    assert "largest worker has 24 GiB" in why()["message"]
    there_is(database, Kind("default", 80 * 2**30))
    assert why() == {"reason": "turn", "message": "The job waits for its turn."}
    with database.transaction() as session:
        lanes.locked(session, tenant.project_id).worker_class = "h100"
    assert why()["reason"] == "worker_class"
    there_is(database, Kind("h100", 0))
    assert why()["reason"] == "turn"


def test_at_the_limit(client: TestClient, database: Database, tenant: Tenant) -> None:
    there_is(database, Kind())
    queue(database, tenant, 1.0)
    second = queue(database, tenant, 2.0)
    with database.transaction() as session:
        quota = Quota(concurrent_jobs=1)
        assert lease.claim_next(
            session, owner="w", ttl_seconds=9.0, max_attempts=3, now=3.0, default_quota=quota
        )
    assert shown(client, tenant, second)["waiting_for"] == {
        "reason": "project_limit",
        "message": "This project runs 1 of the 1 jobs that it may run at once.",
    }


def test_a_job_that_does_not_wait_has_no_reason(
    client: TestClient, database: Database, tenant: Tenant
) -> None:
    job_id = queue(database, tenant, 1.0)
    client.post(f"/fine_tuning/jobs/{job_id}/pause", headers=tenant.headers)
    assert get_job(database, job_id).status == "paused"
    assert shown(client, tenant, job_id)["waiting_for"] is None


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_workers_that_are_gone_do_not_count(client: TestClient, database: Database, tenant: Tenant) -> None:
    with database.transaction() as session:
        announce(session, Kind(), now=time.time() - 3600)
    assert shown(client, tenant, queue(database, tenant, 1.0))["waiting_for"]["reason"] == "no_worker"
