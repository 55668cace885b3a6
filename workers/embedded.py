"""The whole service as one: broker, API and worker as child processes, maintenance in this one.

    with EmbeddedService(DataDir(path), host="127.0.0.1", port=8000) as service:
        ...  # service.url; service.first_key on the first start of a data directory

A process that dies is started again. When the block ends, however it ends, none is left; even
`kill -9` of this process takes them along (Linux; see `workers.leash`).
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import structlog
from sqlalchemy import select

from autoclave.microcosm.shipped import shipped_world
from service import auth, schema
from service.db import Database
from service.metrics.listener import MetricsListener
from service.models import ApiKey, OperatorKey
from service.operators import create_operator_key
from service.settings import Settings
from service.startup import StartError, is_loopback, require_no_default_key
from service.storage import storage_from_url
from service.tracing import tracer_to
from workers.bells import Bells
from workers.broker import broker_process, broker_url, socket_path, wait_for_broker
from workers.celery_app import make_celery
from workers.data_dir import DataDir
from workers.maintenance import maintenance_from_settings
from workers.metrics import WorkerMetrics
from workers.service_process import ServiceProcess
from workers.shipped_base import register_shipped_base
from workers.signing import make_key_file

log = structlog.get_logger(__name__)

TEND_SECONDS = 0.2
# One machine, so a worker's silence means more than behind a network.
_DEFAULTS = {"LEASE_TTL_SECONDS": "20", "HEARTBEAT_SECONDS": "1", "LOG_JSON": "false"}
_GRACE_SECONDS = {"api": 5.0, "worker": 30.0, "broker": 5.0}


def require_free_port(host: str, port: int) -> None:
    """Raises StartError. What takes the port after this is reported by the API process."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        reason = f"cannot listen on {host}:{port}: {error.strerror}"
        raise StartError(f"{reason}; choose another --port") from error


def metrics_port(settings: Settings, name: str) -> int:
    """Three processes of one machine need a port each: METRICS_PORT and the two after it. 0: none."""
    return settings.metrics_port and settings.metrics_port + ("api", "worker", "maintenance").index(name)


def free_port() -> int:
    """A loopback port that nobody listens on now; somebody else may take it before you do."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


class EmbeddedService:
    """`world` is the microcosm to register as a base (default: the one that ships with the project).

    `allow_public` listens on an address that other machines reach also while the first key is valid.
    `give_up`, once set, ends a start that is under way; `hurry` kills what does not stop at once."""

    def __init__(
        self,
        data_dir: DataDir,
        *,
        host: str,
        port: int,
        allow_public: bool = False,
        world: Path | None = None,
        give_up: threading.Event | None = None,
        hurry: threading.Event | None = None,
    ) -> None:
        self.data_dir = data_dir
        self.url = f"http://{'127.0.0.1' if host in ('0.0.0.0', '::') else host}:{port}"  # noqa: S104
        self.first_key: str | None = None
        """The API key made on the first start of this data directory; None on later ones."""
        self.first_operator_key: str | None = None
        """As `first_key`, for the operator's pages."""
        self.processes: dict[str, ServiceProcess] = {}
        self.world = world or shipped_world()
        self._host = host
        self._port = port
        self._allow_public = allow_public
        self._stack = ExitStack()
        self._stopping = threading.Event()
        self._give_up = give_up or threading.Event()
        self._hurry = hurry or threading.Event()

    def __enter__(self) -> Self:
        """Start everything and return when the API answers. Raises StartError; nothing runs then."""
        try:
            self._start()
        except BaseException:
            self._stopping.set()
            self._stack.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        self._stack.close()

    def _start(self) -> None:
        stack = self._stack
        stack.enter_context(self.data_dir.locked())
        require_free_port(self._host, self._port)
        schema.upgrade(self.data_dir.database_url)
        database = Database.from_url(self.data_dir.database_url)
        stack.callback(database.close)
        if not self._allow_public:
            require_no_default_key(database, self._host, about_to_make_one=not self._has_key(database))
        register_shipped_base(database, self.world)
        self.first_key = self._first_key(database)
        # On a public address nobody gets a key that he did not ask for; `create-operator-key` makes one.
        if self._allow_public or is_loopback(self._host):
            self.first_operator_key = self._first_operator_key(database)
        make_key_file(self.data_dir.signing_key)

        broker_socket = stack.enter_context(socket_path(self.data_dir.broker))
        environment = self._environment(broker_url(broker_socket))
        settings = Settings.model_validate({name.lower(): value for name, value in environment.items()})
        logs = self.data_dir.logs
        self.processes["broker"] = broker_process(
            self.data_dir.broker, broker_socket, environment=environment, log_path=logs / "broker.log"
        )
        for name, module, arguments in (
            ("api", "service.main", self._api_arguments()),
            ("worker", "workers.worker", ["--without-maintenance"]),
        ):
            self.processes[name] = ServiceProcess(
                name,
                [sys.executable, "-m", module, *arguments],
                environment=environment | {"METRICS_PORT": str(metrics_port(settings, name))},
                log_path=logs / f"{name}.log",
            )

        keeper = _Keeper(self.processes, stopping=self._stopping, hurry=self._hurry)
        stack.enter_context(keeper)
        keeper.wait_until_started()
        wait_for_broker(self.processes["broker"], broker_socket)
        self._wait_for_api()
        app = make_celery(settings.broker_url)
        stack.callback(app.close)
        storage = storage_from_url(settings.storage_url)
        metrics = WorkerMetrics()
        if port := metrics_port(settings, "maintenance"):
            stack.enter_context(MetricsListener(metrics.registry, host=settings.metrics_host, port=port))
        tracer = tracer_to(settings.otel_exporter_otlp_endpoint, service="autoclave-maintenance")
        stack.callback(tracer.close)
        stack.enter_context(
            maintenance_from_settings(
                database, storage, Bells(database, app), settings, metrics=metrics, tracer=tracer
            )
        )

    def _environment(self, broker: str) -> dict[str, str]:
        return (
            _DEFAULTS
            | {"SIGNING_KEY_FILE": str(self.data_dir.signing_key)}
            | dict(os.environ)
            | {
                "DATABASE_URL": self.data_dir.database_url,
                "STORAGE_URL": self.data_dir.storage_url,
                "BROKER_URL": broker,
                "WORK_DIR": str(self.data_dir.work),
            }
        )

    def _api_arguments(self) -> list[str]:
        public = ["--allow-public"] if self._allow_public else []
        return ["--host", self._host, "--port", str(self._port), *public]

    def _has_key(self, database: Database) -> bool:
        with database.snapshot() as session:
            return session.scalar(select(ApiKey.id).limit(1)) is not None

    def _first_key(self, database: Database) -> str | None:
        now = time.time()
        with database.transaction() as session:
            if session.scalar(select(ApiKey.id).limit(1)) is not None:
                return None
            organization = auth.create_organization(session, name="local", now=now)
            project = auth.create_project(session, organization_id=organization.id, name="default", now=now)
            _, key = auth.create_api_key(
                session, project_id=project.id, name="first", is_default=True, now=now
            )
        return key

    def _first_operator_key(self, database: Database) -> str | None:
        with database.transaction() as session:
            if session.scalar(select(OperatorKey.id).limit(1)) is not None:
                return None
            _, key = create_operator_key(session, name="first", is_default=True, now=time.time())
        return key

    def _wait_for_api(self, timeout_seconds: float = 60.0) -> None:
        api = self.processes["api"]
        deadline = time.monotonic() + timeout_seconds
        while True:
            try:
                with urllib.request.urlopen(f"{self.url}/readyz", timeout=2):  # noqa: S310
                    return
            except (urllib.error.URLError, OSError) as error:
                if self._give_up.is_set():
                    raise StartError("stopped while starting") from error
                if api.exit_code() is not None or time.monotonic() > deadline:
                    raise StartError(f"the API does not start: {api.last_words()} ({error})") from error
            time.sleep(0.05)


class _Keeper:
    """Starts the processes, tends them and stops them, all from one thread that lives as long as they do."""

    def __init__(
        self, processes: dict[str, ServiceProcess], *, stopping: threading.Event, hurry: threading.Event
    ) -> None:
        self._processes = processes
        self._stopping = stopping
        self._hurry = hurry
        self._started = threading.Event()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._keep, name="keeper")

    def _keep(self) -> None:
        try:
            for process in self._processes.values():
                process.start()
            self._started.set()
            while not self._stopping.wait(TEND_SECONDS):
                for process in self._processes.values():
                    process.tend()
        except Exception as error:
            log.exception("embedded service cannot go on")
            self._error = error
        finally:
            self._started.set()
            self._stop()

    def _stop(self) -> None:
        # The API first, so that no job comes in; the broker last, the worker may still talk to it.
        for process in self._processes.values():
            if process.name != "broker":
                process.ask_to_stop()
        for name in ("api", "worker", "broker"):
            self._processes[name].stop(grace_seconds=_GRACE_SECONDS[name], hurry=self._hurry)

    def wait_until_started(self) -> None:
        self._started.wait()
        if self._error is not None:
            raise StartError(f"cannot start: {self._error}") from self._error

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        self._thread.join()
