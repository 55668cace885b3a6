"""/metrics of real processes: an API, a worker, and the embedded service with its three."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.settings import Settings
from tests.exposition import Samples, samples_of
from tests.service.test_main import free_port, refusal
from tests.workers.conftest import Bench, QueuedJob
from tests.workers.test_embedded import Up
from tests.workers.test_worker import Workers, wait_for_status, workers
from workers.celery_app import make_celery
from workers.embedded import metrics_port

__all__ = ["workers"]


@pytest.fixture
def port() -> int:
    return free_port()


def scraped(port: int, timeout_seconds: float = 40.0) -> Samples:
    deadline = time.monotonic() + timeout_seconds
    while True:
        try:
            return samples_of(httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=5).text)
        except httpx.TransportError:
            assert time.monotonic() < deadline, f"nobody serves metrics on {port}"
            time.sleep(0.05)


@pytest.mark.slow
def test_a_worker_serves_what_it_did(
    bench: Bench, queued_job: QueuedJob, workers: Workers, port: int
) -> None:
    job_id = queued_job()
    workers.environment["METRICS_PORT"] = str(port)
    worker = workers.start("tests.workers.scripted_worker", "happy")
    wait_for_status(bench.database, job_id, "succeeded", workers)
    bench.wait_until(lambda: scraped(port)['ft_job_attempts_total{outcome="succeeded"}'] == 1)
    found = scraped(port)
    assert found["ft_train_tokens_total"] == 1234
    assert found['ft_disk_free_bytes{volume="work"}'] > 0
    assert found["process_resident_memory_bytes"] > 0
    # A second one on the same port says so and does not start.
    second = workers.start("tests.workers.scripted_worker", "happy")
    assert second.wait(30) != 0
    assert f"METRICS_PORT: cannot listen on 127.0.0.1 port {port}" in workers.log()
    worker.terminate()
    assert worker.wait(20) == 0


@pytest.mark.slow
def test_the_embedded_service_has_three(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    monkeypatch.setenv("METRICS_PORT", str(port))
    public = free_port()
    up = Up(tmp_path / "data", tmp_path / "up.log", public)
    try:
        up.wait_until_ready()
        api, worker, maintenance = (scraped(port + i) for i in range(3))
        assert api["ft_database_up"] == 1
        assert 'ft_job_attempts_total{outcome="died"}' in worker
        assert 'ft_reaped_total{reason="lease_expired"}' in maintenance
        assert "ft_database_up" not in worker
        assert httpx.get(f"http://127.0.0.1:{public}/metrics").status_code == 404
        deadline = time.monotonic() + 20
        while scraped(port)['ft_workers{state="idle"}'] != 1:
            assert time.monotonic() < deadline
            time.sleep(0.1)
    finally:
        up.process.terminate()
        up.process.wait(40)
    assert up.process.returncode == 0, up.output()


def test_an_address_that_cannot_be_had_is_one_line(sqlite_url: str, storage_url: str) -> None:
    answer = refusal(
        DATABASE_URL=sqlite_url, STORAGE_URL=storage_url, METRICS_HOST="192.0.2.1", METRICS_PORT="9464"
    )
    assert answer.startswith(
        "autoclave api: METRICS_HOST, METRICS_PORT: cannot listen on 192.0.2.1 port 9464: "
    )


def test_processes_of_one_machine_get_ports_of_their_own() -> None:
    settings = Settings(database_url="x", storage_url="y", metrics_port=9464)
    names = ("api", "worker", "maintenance")
    assert [metrics_port(settings, name) for name in names] == [9464, 9465, 9466]
    off = settings.model_copy(update={"metrics_port": 0})
    assert [metrics_port(off, name) for name in names] == [0, 0, 0]


@pytest.mark.slow
def test_flower_hears_of_a_worker_that_was_told_to_say(workers: Workers) -> None:
    workers.environment["WORKER_EVENTS"] = "true"
    worker = workers.start("tests.workers.scripted_worker", "happy")
    heard: list[dict[str, Any]] = []
    with make_celery(workers.environment["BROKER_URL"]) as app, app.connection() as connection:
        receiver = app.events.Receiver(connection, handlers={"*": heard.append})
        for _ in receiver.itercapture(limit=None, timeout=40, wakeup=False):
            if heard:
                break
    assert {event["hostname"].split("@")[0] for event in heard} == {f"autoclave-{worker.pid}"}
    worker.terminate()
    assert worker.wait(20) == 0
