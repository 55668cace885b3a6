"""A worker does one job after another, leaves a project alone that runs as many as it may, and is heard
of."""

from __future__ import annotations

import time

import pytest
from celery import Celery
from sqlalchemy import select

from service.db import Database
from service.models import GpuUsage, KnownWorker, OutboxMessage
from service.scheduling.workers import Kind, announce
from tests.workers.conftest import Bench, QueuedJob
from workers import bells
from workers.announcing import Announcing
from workers.bells import Bells
from workers.maintenance import Maintenance


def test_one_bell_is_enough_for_all_jobs(bench: Bench, queued_job: QueuedJob) -> None:
    job_ids = [queued_job() for _ in range(3)]
    bench.supervisor("happy").answer("")
    assert [bench.job(job_id).status for job_id in job_ids] == ["succeeded"] * 3
    started = [bench.job(job_id).started_at or 0.0 for job_id in job_ids]
    assert started == sorted(started)


def test_a_worker_that_shuts_down_rings_for_another(bench: Bench, queued_job: QueuedJob) -> None:
    job_id = queued_job()
    bench.shutdown.set()
    bench.supervisor("happy").answer(job_id)
    assert bench.job(job_id).status == "queued"
    with bench.database.snapshot() as session:
        assert list(session.scalars(select(OutboxMessage.job_id))) == [job_id, job_id]


def test_one_at_a_time(bench: Bench, queued_job: QueuedJob) -> None:
    first, second = queued_job(), queued_job()
    rung: list[str] = []
    maintenance = Maintenance(
        bench.database, bench.storage, rung.append, max_attempts=2, resend_after_seconds=60.0
    )
    maintenance.publish(1.0)
    assert rung == [first, second]
    running = bench.run_beside("cooperates", first, quota_concurrent_jobs=1)
    assert bench.run("happy", second, quota_concurrent_jobs=1).status == "queued"

    bench.shutdown.set()  # as a worker that is stopped: it hands its job back
    running.join(30)
    bench.shutdown.clear()
    maintenance.publish(1.0)
    # For the one that went back, and for the place that it left.
    assert sorted(rung[2:]) == sorted([first, second])
    bench.supervisor("happy", quota_concurrent_jobs=1).answer("")
    assert {bench.job(job_id).status for job_id in (first, second)} == {"succeeded"}
    with bench.database.snapshot() as session:
        assert sum(session.scalars(select(GpuUsage.seconds))) > 0


def test_a_job_that_is_too_large_goes_back_for_a_larger_worker(bench: Bench, queued_job: QueuedJob) -> None:
    job_id = queued_job()
    job = bench.run("is_large", job_id, worker_memory_bytes=2**30)
    assert (job.status, job.attempt_count, job.needed_memory_bytes) == ("queued", 0, 3 * 2**30)
    assert bench.events(job_id)[-1].message == "Back in the queue: it needs a worker with more memory"
    assert bench.run("happy", job_id, worker_memory_bytes=2**30).status == "queued", "nor is it tried again"
    assert bench.run("happy", job_id, worker_memory_bytes=2**32).status == "succeeded"


def test_bells_ring_where_the_job_could_run(
    bench: Bench, queued_job: QueuedJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    rung: list[str] = []
    monkeypatch.setattr(bells, "ring", lambda app, job_id, *, queue: rung.append(queue))
    ring = Bells(bench.database, Celery())
    job_id = queued_job(needed_memory_bytes=30)

    def heard() -> list[str]:
        rung.clear()
        ring(job_id)
        return list(rung)

    assert heard() == ["autoclave"], "nobody is known"
    with bench.database.transaction() as session:
        for kind in (Kind(), Kind("small", 20), Kind("large", 40)):
            announce(session, kind, now=time.time())
        announce(session, Kind("gone", 99), now=time.time() - 3600)
    assert heard() == ["autoclave", "autoclave.large.40"]
    bench.change(job_id, status="running")
    assert heard() == []


def test_presence(database: Database) -> None:
    def seen() -> list[float]:
        with database.snapshot() as session:
            return list(session.scalars(select(KnownWorker.seen_at)))

    with Announcing(database, Kind("a", 7), interval_seconds=0.01):
        (at,) = seen()
        with database.transaction() as session:
            row = session.get_one(KnownWorker, ("a", 7))
            row.seen_at = at - 100
        deadline = time.monotonic() + 10
        while seen()[0] < at:
            assert time.monotonic() < deadline
            time.sleep(0.01)
