"""`autoclave jobs` against the real API on a real socket."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import structlog
import uvicorn
from typer.testing import CliRunner, Result

from service.app import create_app
from service.db import Database
from service.jobs.events import add_event
from service.jobs.states import Stage, Status
from service.jobs.transitions import move
from service.main import _Server
from service.models import Job
from service.settings import Settings
from service.storage import Storage
from tests.builders import Tenant, make_job
from tests.waiting import wait_until
from workers.cli import app

# A shell starts what runs in the background, and these tests may, deaf to Ctrl-C.
HEARS_CTRL_C = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from workers.cli import main
main()
"""


@dataclass(frozen=True)
class Terminal:
    """Somebody's shell: the environment has their URL and key."""

    environment: dict[str, str]

    def run(self, *arguments: str, exit_code: int = 0, **environment: str) -> Result:
        result = CliRunner().invoke(app, ["jobs", *arguments], env=self.environment | environment)
        assert result.exit_code == exit_code, result.output
        return result

    def out(self, *arguments: str) -> str:
        return self.run(*arguments).stdout

    def json(self, *arguments: str) -> Any:
        return json.loads(self.out(*arguments, "--json"))

    def refused(self, *arguments: str, exit_code: int = 3, **environment: str) -> str:
        """What stands on standard error, and nothing on standard output."""
        result = self.run(*arguments, exit_code=exit_code, **environment)
        assert result.stdout == ""
        return result.stderr

    def start(self, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        """In a process of its own, for signals and terminals."""
        return subprocess.Popen(
            [sys.executable, "-c", HEARS_CTRL_C, "jobs", *arguments],
            env=dict(os.environ) | self.environment,
            text=True,
            **options,
        )


@pytest.fixture(autouse=True)
def server_log() -> Iterator[list[Any]]:
    """The server is in this process: what it logs is not what a command says."""
    with structlog.testing.capture_logs() as entries:
        yield entries


Meanwhile = Callable[..., AbstractContextManager[None]]


@pytest.fixture
def meanwhile(server_log: list[Any]) -> Meanwhile:
    """Takes steps, one after the other, beside the body: each after a command has looked at the job again."""

    def num_looks() -> int:
        seen = [one for one in list(server_log) if one["event"] == "request"]
        return sum(re.search(r"/jobs/[^/]+$", one["path"]) is not None for one in seen)

    @contextmanager
    def beside(*steps: Callable[[], object], looks: int = 2) -> Iterator[None]:
        failures: list[BaseException] = []

        def take() -> None:
            try:
                for step in steps:
                    before = num_looks()
                    wait_until(lambda before=before: num_looks() >= before + looks, timeout_seconds=30)
                    step()
            except BaseException as failure:
                failures.append(failure)

        thread = threading.Thread(target=take)
        thread.start()
        try:
            yield
        finally:
            thread.join()
        assert not failures, failures

    return beside


def terminal_of(url: str, tenant: Tenant) -> Terminal:
    return Terminal({"AUTOCLAVE_BASE_URL": url, "AUTOCLAVE_API_KEY": tenant.key, "COLUMNS": "120"})


@pytest.fixture
def terminal(api_url: str, tenant: Tenant) -> Terminal:
    return terminal_of(api_url, tenant)


class Server:
    """The API on one port, that can be stopped and started again."""

    def __init__(self, settings: Settings, database: Database, storage: Storage) -> None:
        self._make = lambda: create_app(settings, database=database, storage=storage)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self._running: tuple[uvicorn.Server, threading.Thread] | None = None

    def start(self) -> None:
        app = self._make()
        config = uvicorn.Config(app, host="127.0.0.1", port=self.port, log_config=None, ws="none")
        server = _Server(config, app)
        thread = threading.Thread(target=server.run)
        thread.start()
        self._running = (server, thread)
        wait_until(lambda: server.started)

    def stop(self) -> None:
        if self._running is not None:
            server, thread = self._running
            self._running = None
            server.should_exit = True
            thread.join(30)
            assert not thread.is_alive()


@pytest.fixture
def server(settings: Settings, database: Database, storage: Storage) -> Iterator[Server]:
    server = Server(settings, database, storage)
    server.start()
    yield server
    server.stop()


def make_running(database: Database, tenant: Tenant, **columns: Any) -> str:
    """A job in its last stage, as a worker left it."""
    values: dict[str, Any] = {"status": "running", "stage": "publish", **columns}
    with database.transaction() as session:
        return make_job(session, tenant.project_id, **values).id


def say(database: Database, job_id: str, message: str, **event: Any) -> None:
    with database.transaction() as session:
        session.get_one(Job, job_id, with_for_update=True)
        add_event(session, job_id, message, now=time.time(), **event)


def say_loss(database: Database, job_id: str, step: int, loss: float) -> None:
    data = {"step": step, "total_steps": 40, "train_loss": loss}
    say(database, job_id, f"Step {step}/40: training loss={loss:.4f}", type="metrics", data=data)


def change(database: Database, job_id: str, **columns: Any) -> None:
    with database.transaction() as session:
        job = session.get_one(Job, job_id)
        for name, value in columns.items():
            setattr(job, name, value)


def end(database: Database, job_id: str, status: Status = Status.CANCELLED) -> None:
    error = {"error_code": "non_finite_loss", "error_message": "the loss became nan at step 7"}
    with database.transaction() as session:
        move(session, job_id, (status, Stage.PUBLISH), message="the end", now=time.time())
        if status is Status.FAILED:
            for name, value in error.items():
                setattr(session.get_one(Job, job_id), name, value)
