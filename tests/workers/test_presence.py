"""A worker's row while it is there, while it works, and after it stopped."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import structlog

from service.db import Database
from service.fleet import repository as fleet
from service.models import Worker
from service.scheduling.workers import Kind
from service.settings import Settings
from tests.workers.conftest import Bench, QueuedJob
from workers.device import Device, DeviceReading
from workers.presence import Presence


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url


def make_presence(database: Database, **overrides: Any) -> Presence:
    values: dict[str, Any] = {
        "worker_id": "test",
        "host": "here",
        "pid": 7,
        "interval_seconds": 0.05,
        "kind": Kind(),
        "num_processes": 0,
        "shutdown": threading.Event(),
        **overrides,
    }
    return Presence(database, Device(""), **values)


def row(database: Database) -> Worker | None:
    with database.snapshot() as session:
        return session.get(Worker, "test")


def test_a_worker_is_there_while_it_is_idle_and_gone_afterwards(bench: Bench) -> None:
    with make_presence(bench.database):
        bench.wait_until(lambda: row(bench.database) is not None)
        first = row(bench.database)
        assert first is not None
        assert (first.state, first.host, first.pid, first.job_id) == ("idle", "here", 7, None)
        bench.wait_until(lambda: row(bench.database).heartbeat_at > first.heartbeat_at)  # type: ignore[union-attr]
    last = row(bench.database)
    assert last is not None
    assert (last.state, last.started_at) == ("gone", first.started_at)


def test_a_worker_shows_the_job_in_hand_and_its_memory(
    bench: Bench, queued_job: QueuedJob, settings: Settings
) -> None:
    job_id = queued_job()
    with make_presence(bench.database) as presence:
        supervisor = bench.supervisor("cooperates")
        supervisor._presence = presence
        thread = threading.Thread(target=supervisor.run_next)
        thread.start()

        def working() -> bool:
            with bench.database.snapshot() as session:
                workers = fleet.workers(session, now=0.0)
            return bool(workers and workers[0].step == 1 and workers[0].memory_used_bytes)

        try:
            bench.wait_until(working)
            worker = row(bench.database)
            assert worker is not None
            assert (worker.state, worker.job_id, worker.device_kind) == ("busy", job_id, "cpu")
            presence._shutdown.set()
            bench.wait_until(lambda: row(bench.database).state == "stopping")  # type: ignore[union-attr]
        finally:
            bench.shutdown.set()
            thread.join(30)
        presence._shutdown.clear()
        bench.wait_until(lambda: row(bench.database).state == "idle")  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("declared", "measured", "expected"),
    [(0, 80, 80), (60, 80, 60), (90, 80, 80), (60, None, 60), (0, None, None)],
)
def test_a_worker_says_what_a_job_may_take_of_it(
    database: Database, declared: int, measured: int | None, expected: int | None
) -> None:
    presence = make_presence(database, kind=Kind("h100", declared), num_processes=2)
    reading = DeviceReading("cuda", "2 x a card", None, None, measured)
    presence._device.reading = lambda child_pid: reading  # type: ignore[method-assign]
    presence.beat()
    worker = row(database)
    assert worker is not None
    assert (worker.worker_class, worker.job_memory_bytes, worker.job_processes) == ("h100", expected, 2)


def test_a_database_that_does_not_answer_is_said_once(database: Database) -> None:
    presence = make_presence(database)
    broken = Database.from_url("sqlite:////nonexistent/x.db")
    presence._database = broken
    with structlog.testing.capture_logs() as log:
        presence.beat()
        presence.beat()
        presence._database = database
        presence.beat()
    broken.close()
    assert [line["event"] for line in log] == [
        "this worker cannot show itself",
        "this worker shows itself again",
    ]
    assert row(database) is not None
