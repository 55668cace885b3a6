"""Real worker processes on a real broker: jobs arrive, workers die, nothing is lost and nobody is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from service.db import Database
from service.settings import Settings
from tests.builders import get_job
from tests.s3 import CREDENTIALS
from tests.workers.conftest import QueuedJob
from workers.broker import broker_process, broker_url, socket_path, wait_for_broker

pytestmark = pytest.mark.slow


class Workers:
    """Starts worker processes and knows all of their descendants."""

    def __init__(self, environment: dict[str, str], logs: Path) -> None:
        self.environment = environment
        self._logs = logs
        self.started: list[subprocess.Popen[bytes]] = []

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        with (self._logs / f"worker-{len(self.started)}.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", *arguments],
                env=self.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.started.append(process)
        return process

    def log(self, number: int = -1) -> str:
        return (self._logs / f"worker-{number % len(self.started)}.log").read_text()


@pytest.fixture
def workers(settings: Settings, tmp_path: Path) -> Iterator[Workers]:
    with socket_path(tmp_path) as socket:
        environment = os.environ | {
            "DATABASE_URL": settings.database_url,
            "STORAGE_URL": settings.storage_url,
            "BROKER_URL": broker_url(socket),
            "WORK_DIR": str(settings.work_dir),
            "LEASE_TTL_SECONDS": "2",
            "HEARTBEAT_SECONDS": "0.2",
            "MAINTENANCE_INTERVAL_SECONDS": "0.2",
            "DRAIN_GRACE_SECONDS": "0.5",
            "TERMINATE_GRACE_SECONDS": "0.5",
        }
        broker = broker_process(tmp_path, socket, environment=environment, log_path=tmp_path / "broker.log")
        broker.start()
        workers = Workers(environment, tmp_path)
        try:
            wait_for_broker(broker, socket)
            yield workers
        finally:
            for process in workers.started:
                process.kill()
                process.wait(10)
            broker.stop(grace_seconds=5, hurry=threading.Event())


def wait_for_status(database: Database, job_id: str, status: str, workers: Workers) -> None:
    deadline = time.monotonic() + 40
    while get_job(database, job_id).status != status:
        assert time.monotonic() < deadline, workers.log()
        time.sleep(0.05)


def wait_for_pids(settings: Settings) -> list[psutil.Process]:
    """The scripted child's process and its children's."""
    deadline = time.monotonic() + 40
    while True:
        if files := list(settings.work_dir.glob("*/pids")):
            return [psutil.Process(int(pid)) for pid in files[0].read_text().split()]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def wait_until_gone(processes: list[psutil.Process], timeout_seconds: float) -> None:
    deadline = time.monotonic() + timeout_seconds
    for process in processes:
        while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline, f"{process} is left"
            time.sleep(0.02)


def test_a_killed_worker_leaves_a_job_that_another_finishes(
    workers: Workers, settings: Settings, database: Database, queued_job: QueuedJob
) -> None:
    job_id = queued_job()
    first = workers.start("tests.workers.scripted_worker", "cooperates")
    [child] = wait_for_pids(settings)
    assert get_job(database, job_id).status == "running"

    first.send_signal(signal.SIGKILL)
    first.wait(10)
    wait_until_gone([child], timeout_seconds=5)
    assert get_job(database, job_id).status == "running", "nobody could know yet"

    workers.start("tests.workers.scripted_worker", "happy")
    wait_for_status(database, job_id, "succeeded", workers)
    job = get_job(database, job_id)
    assert (job.attempt_count, job.fencing_number) == (2, 2)
    # The dead worker's scratch folder went with the start of the next worker.
    assert [folder.name.rsplit("-", 1)[1] for folder in settings.work_dir.iterdir()] == [
        str(workers.started[1].pid)
    ]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_worker_that_is_stopped_hands_its_job_back(
    workers: Workers, settings: Settings, database: Database, queued_job: QueuedJob, number: signal.Signals
) -> None:
    job_id = queued_job()
    worker = workers.start("tests.workers.scripted_worker", "stubborn")
    processes = wait_for_pids(settings)
    assert len(processes) == 2

    worker.send_signal(number)
    assert worker.wait(15) == 0, workers.log()
    wait_until_gone(processes, timeout_seconds=0.5)
    job = get_job(database, job_id)
    assert (job.status, job.attempt_count) == ("queued", 0)
    assert list(settings.work_dir.iterdir()) == []


def test_a_frozen_worker_that_wakes_up_does_no_harm(
    workers: Workers, settings: Settings, database: Database, queued_job: QueuedJob
) -> None:
    job_id = queued_job()
    frozen = workers.start("tests.workers.scripted_worker", "cooperates")
    [child] = wait_for_pids(settings)
    # Not while it writes the progress that comes with the child's start: on SQLite it would stop everybody.
    while get_job(database, job_id).progress is None:
        time.sleep(0.01)
    time.sleep(0.05)
    frozen.send_signal(signal.SIGSTOP)
    workers.start("tests.workers.scripted_worker", "happy")
    wait_for_status(database, job_id, "succeeded", workers)
    frozen.send_signal(signal.SIGCONT)
    wait_until_gone([child], timeout_seconds=10)
    job = get_job(database, job_id)
    assert (job.status, job.fencing_number) == ("succeeded", 2)


@pytest.mark.parametrize(
    ("variable", "value", "line"),
    [
        ("DATABASE_URL", "mysql://x/y", "autoclave worker: DATABASE_URL: 'mysql' is not supported"),
        ("DATABASE_URL", "sqlite:////dev/null/x.db", "autoclave worker: DATABASE_URL: cannot connect"),
        ("BROKER_URL", "redis+socket:///nonexistent.sock", "autoclave worker: BROKER_URL: cannot connect"),
        (
            "DATABASE_URL",
            "sqlite:///{tmp_path}/old.db",
            "autoclave worker: the database schema is at revision none",
        ),
        ("STORAGE_URL", "ftp://x", "autoclave worker: STORAGE_URL: 'ftp://x' is not supported"),
        (
            "STORAGE_URL",
            "s3://no-such-bucket?endpoint={s3}",
            "autoclave worker: STORAGE_URL: there is no such bucket",
        ),
        (
            "STORAGE_URL",
            "s3://bucket?endpoint=http://127.0.0.1:1",
            "autoclave worker: STORAGE_URL: cannot write to it: the storage does not answer (connection",
        ),
        ("HEARTBEAT_SECONDS", "often", "autoclave worker: settings: HEARTBEAT_SECONDS: "),
    ],
)
@pytest.mark.parametrize("command", ["worker", "maintenance"])
def test_a_start_that_cannot_work_is_one_line(
    workers: Workers,
    variable: str,
    value: str,
    line: str,
    command: str,
    tmp_path: Path,
    s3_endpoint: str,
    database: Database,
    queued_job: QueuedJob,
) -> None:
    """And no job is taken."""
    job_id = queued_job()
    workers.environment |= {**CREDENTIALS, variable: value.format(tmp_path=tmp_path, s3=s3_endpoint)}
    if command == "maintenance":
        line = line.replace("autoclave worker:", "error:")
    process = workers.start(*(["workers.worker"] if command == "worker" else ["workers.cli", command]))
    assert process.wait(30) == 2, workers.log()
    assert workers.log().startswith(line), workers.log()
    assert workers.log().count("\n") == 1, workers.log()
    assert get_job(database, job_id).status == "queued"


def test_maintenance_alone_does_what_a_worker_leaves_out(
    workers: Workers, database: Database, queued_job: QueuedJob
) -> None:
    job_id = queued_job()
    maintenance = workers.start("workers.cli", "maintenance")
    worker = workers.start("tests.workers.scripted_worker", "happy", "--without-maintenance")
    wait_for_status(database, job_id, "succeeded", workers)
    for process in (maintenance, worker):
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0, workers.log()
