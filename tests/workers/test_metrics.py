"""What a worker counts: from real attempts of scripted children, the reaper, and webhooks."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from service.db import Database
from service.fleet import presence
from service.fleet import repository as fleet
from service.jobs import lease
from service.models import Job
from service.storage import Storage
from tests.exposition import Samples, samples
from tests.service.fleet.test_repository import sighting
from tests.workers.conftest import Bench, QueuedJob
from workers.endings import Cancelled, Died, Finished
from workers.maintenance import WORKERS_KEPT_SECONDS, Maintenance
from workers.messages import Failed
from workers.metrics import OUTCOMES, WorkerMetrics, outcome_of


@pytest.fixture
def metrics() -> WorkerMetrics:
    return WorkerMetrics()


def run(bench: Bench, metrics: WorkerMetrics, behaviour: str, job_id: str, **settings: Any) -> Samples:
    supervisor = bench.supervisor(behaviour, **settings)
    supervisor._metrics = metrics
    supervisor.run_next()
    return samples(metrics.registry)


def attempts(found: Samples) -> dict[str, float]:
    prefix, suffix = 'ft_job_attempts_total{outcome="', '"}'
    return {
        name.removeprefix(prefix).removesuffix(suffix): value
        for name, value in found.items()
        if name.startswith(prefix) and value
    }


def test_every_outcome_is_there_from_the_start(metrics: WorkerMetrics) -> None:
    """Else the first failure of its kind would be no increase."""
    found = samples(metrics.registry)
    assert [f'ft_job_attempts_total{{outcome="{outcome}"}}' in found for outcome in OUTCOMES] == [True] * 13
    assert found['ft_reaped_total{reason="attempts_exhausted"}'] == 0
    assert found["ft_train_tokens_total"] == 0


def test_a_job_that_succeeds(bench: Bench, metrics: WorkerMetrics, queued_job: QueuedJob) -> None:
    found = run(bench, metrics, "happy", queued_job())
    assert attempts(found) == {"succeeded": 1}
    for stage in ("prepare", "train", "sanitize", "evaluate", "publish"):
        assert found[f'ft_job_stage_duration_seconds_count{{stage="{stage}"}}'] == 1
        assert found[f'ft_job_stage_duration_seconds_sum{{stage="{stage}"}}'] >= 0
    assert found["ft_train_tokens_total"] == 1234
    assert 0 < found["ft_gpu_seconds_total"] < 60


def test_scores_of_a_job_that_got_a_verdict(
    bench: Bench, metrics: WorkerMetrics, queued_job: QueuedJob
) -> None:
    found = run(bench, metrics, "scored", queued_job())
    assert found['ft_harmful_score_sum{phase="before"}'] == 80
    assert found['ft_harmful_score_sum{phase="after"}'] == 4
    assert found['ft_harmful_score_count{phase="base"}'] == 0
    assert found['ft_harmful_score_bucket{le="5.0",phase="after"}'] == 1
    assert found['ft_harmful_score_bucket{le="2.0",phase="after"}'] == 0


@pytest.mark.parametrize(
    ("behaviour", "outcomes"),
    [
        ("refuses", {"safety_gate_failed": 1}),
        ("crashes", {"died": 1}),
        ("is_killed", {"died": 1}),
        ("needs_memory", {"out_of_memory": 1, "succeeded": 1}),
        ("needs_too_much_memory", {"out_of_memory": 2}),
    ],
)
def test_every_child_is_counted_once(
    bench: Bench,
    metrics: WorkerMetrics,
    queued_job: QueuedJob,
    behaviour: str,
    outcomes: dict[str, float],
) -> None:
    assert attempts(run(bench, metrics, behaviour, queued_job())) == outcomes


def test_a_resumed_job_counts_its_tokens_once(
    bench: Bench, metrics: WorkerMetrics, queued_job: QueuedJob
) -> None:
    job_id = queued_job()
    run(bench, metrics, "crashes", job_id)  # in training
    found = run(bench, metrics, "happy", job_id)
    assert attempts(found) == {"died": 1, "succeeded": 1}
    assert found["ft_train_tokens_total"] == 1234
    assert found['ft_job_stage_duration_seconds_count{stage="prepare"}'] == 1


def test_tokens_that_another_job_trained_are_not_counted_again(
    bench: Bench, metrics: WorkerMetrics, queued_job: QueuedJob
) -> None:
    kept = {"job_id": "x", "checkpoint_id": None, "prefix": "p", "adapter_sha256": "a", "figures": {}}
    found = run(bench, metrics, "happy", queued_job(starts_from=kept))
    assert attempts(found) == {"succeeded": 1}
    assert found["ft_train_tokens_total"] == 0


def test_a_lost_lease_counts_nothing_else(
    bench: Bench, metrics: WorkerMetrics, queued_job: QueuedJob
) -> None:
    job_id = queued_job()
    supervisor = bench.supervisor("cooperates")
    supervisor._metrics = metrics
    thread = threading.Thread(target=supervisor.run_next)
    thread.start()
    bench.wait_until(lambda: bench.job(job_id).progress is not None)
    bench.change(job_id, fencing_number=99)
    thread.join(30)
    assert attempts(samples(metrics.registry)) == {"lease_lost": 1}


def test_a_job_that_runs_counts_its_time_while_it_runs(
    bench: Bench, metrics: WorkerMetrics, queued_job: QueuedJob
) -> None:
    supervisor = bench.supervisor("cooperates")
    supervisor._metrics = metrics
    queued_job()
    thread = threading.Thread(target=supervisor.run_next)
    thread.start()
    bench.wait_until(lambda: samples(metrics.registry)["ft_gpu_seconds_total"] > 0.2)
    bench.shutdown.set()
    thread.join(30)
    assert attempts(samples(metrics.registry)) == {"drained": 1}


def test_the_reaper_says_why(
    database: Database, storage: Storage, queued_job: QueuedJob, metrics: WorkerMetrics
) -> None:
    maintenance = Maintenance(
        database, storage, lambda _: None, max_attempts=2, resend_after_seconds=60, metrics=metrics
    )
    columns: list[dict[str, Any]] = [
        {},
        {"cancel_requested_at": 1.0},
        {"pause_requested_at": 1.0},
        {"attempt_count": 2},
    ]
    for changes in columns:
        job_id = queued_job()
        with database.transaction() as session:
            assert lease.claim(session, job_id, owner="w", ttl_seconds=1, max_attempts=9, now=time.time())
            job = session.get_one(Job, job_id)
            for name, value in changes.items():
                setattr(job, name, value)
    assert maintenance.reap(time.time() + 60) == 4
    silent = queued_job(attempt_count=2)
    maintenance.ring_again(time.time() + 3600)
    with database.snapshot() as session:
        assert session.get_one(Job, silent).status == "failed"
    found = samples(metrics.registry)
    assert {name: value for name, value in found.items() if name.startswith("ft_reaped_total")} == {
        'ft_reaped_total{reason="lease_expired"}': 1,
        'ft_reaped_total{reason="cancel_requested"}': 1,
        'ft_reaped_total{reason="pause_requested"}': 1,
        'ft_reaped_total{reason="attempts_exhausted"}': 2,
    }


def test_webhook_attempts_are_counted_by_class_or_error(metrics: WorkerMetrics) -> None:
    for status, error in ((204, None), (200, None), (418, None), (None, "dns_failed"), (None, None)):
        metrics.webhook_attempted(status=status, error=error)
    found = samples(metrics.registry)
    assert {name: value for name, value in found.items() if "webhook_attempts_total" in name} == {
        'ft_webhook_attempts_total{code="2xx"}': 2,
        'ft_webhook_attempts_total{code="4xx"}': 1,
        'ft_webhook_attempts_total{code="dns_failed"}': 1,
        'ft_webhook_attempts_total{code="internal_error"}': 1,
    }


def test_outcomes_of_endings() -> None:
    assert outcome_of(Cancelled()) == "cancelled"
    assert outcome_of(Died(1)) == "died"
    assert outcome_of(Finished(Failed(code="file_corrupted", message="x"))) == "failed"


def test_workers_that_nobody_heard_of_for_an_hour_are_forgotten(database: Database, storage: Storage) -> None:
    now = time.time()
    maintenance = Maintenance(database, storage, lambda _: None, max_attempts=2, resend_after_seconds=60)
    with database.transaction() as session:
        presence.see(session, sighting(id="there", heartbeat_at=now - WORKERS_KEPT_SECONDS + 60))
        presence.see(session, sighting(id="lost", heartbeat_at=now - WORKERS_KEPT_SECONDS - 60))
    maintenance.tidy(now)
    with database.snapshot() as session:
        assert [worker.id for worker in fleet.workers(session, now=now)] == ["there"]
