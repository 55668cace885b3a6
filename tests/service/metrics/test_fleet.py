"""Gauges of the database at scrape, on both databases, and when there is none."""

from __future__ import annotations

import time

from prometheus_client import CollectorRegistry

from service.db import Database
from service.fleet import presence
from service.fleet.states import WorkerState
from service.metrics.fleet import FleetCollector
from tests.builders import Tenant, limit_running, make_job, make_queued_job, make_tenant
from tests.exposition import samples
from tests.service.fleet.test_repository import sighting


def registry_of(database: Database) -> CollectorRegistry:
    registry = CollectorRegistry(auto_describe=True)
    registry.register(FleetCollector(database))
    return registry


def test_an_empty_service_shows_zeros(database: Database) -> None:
    found = samples(registry_of(database))
    assert found["ft_database_up"] == 1
    assert found['ft_jobs{stage="prepare",status="queued"}'] == 0
    assert found['ft_jobs{stage="publish",status="succeeded"}'] == 0
    assert found["ft_job_queue_age_seconds"] == 0
    assert found['ft_workers{state="idle"}'] == 0
    assert not [name for name in found if "heartbeat" in name]


def test_gauges_follow_the_database(database: Database, tenant: Tenant) -> None:
    now = time.time()
    registry = registry_of(database)
    limited = make_tenant(database, name="Limited")
    with database.transaction() as session:
        make_queued_job(session, tenant.project_id, created_at=now - 100)
        make_job(session, limited.project_id, queued_at=now - 500)
        make_job(session, limited.project_id, status="running", stage="publish")
        limit_running(session, limited.project_id, 1)
        make_job(
            session,
            tenant.project_id,
            status="running",
            stage="train",
            heartbeat_at=now - 999,
            stage_began_at=now,
        )
        make_job(session, tenant.project_id, status="failed", stage="sanitize")
        presence.see(
            session,
            sighting(heartbeat_at=now - 30, state=WorkerState.BUSY, device_kind="cuda", memory_used_bytes=5),
        )
    found = samples(registry)
    assert found['ft_jobs{stage="prepare",status="queued"}'] == 2
    assert found['ft_jobs{stage="train",status="running"}'] == 1
    assert found['ft_jobs{stage="sanitize",status="failed"}'] == 1
    assert (found["ft_jobs_held"], found["ft_jobs_stuck"], found["ft_outbox_pending"]) == (1, 1, 1)
    assert 100 <= found["ft_job_queue_age_seconds"] < 160
    assert 100 <= found["ft_outbox_age_seconds"] < 160
    assert found['ft_workers{state="busy"}'] == 1
    assert 30 <= found['ft_worker_heartbeat_age_seconds{device="cuda",worker="host:1:abcd"}'] < 90
    assert found['ft_worker_memory_used_bytes{device="cuda",worker="host:1:abcd"}'] == 5
    assert tenant.project_id not in str(found)


def test_without_a_database_it_says_so_and_nothing_else() -> None:
    broken = Database.from_url("sqlite:////nonexistent/x.db")
    assert samples(registry_of(broken)) == {"ft_database_up": 0.0}
    broken.close()
