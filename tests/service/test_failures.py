"""A full disk, a dead database, a killed process: said in OpenAI's shape, and what was acknowledged is there."""

from __future__ import annotations

import hashlib
import resource
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import event, func, select

from service.db import Database
from service.models import File, Job, Upload, UploadPart
from service.storage import Storage
from tests.builders import BASE_ID, Tenant, dataset, make_base, make_file
from tests.service.test_main import COMMAND, environment, free_port
from workers.sweep import sweep

sqlite_only = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
TABLES = (File, Upload, UploadPart, Job)


def error(answer: Any, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["x-request-id"].startswith("req_")
    fields: dict[str, Any] = answer.json()["error"]
    assert set(fields) == {"message", "type", "param", "code"}
    assert fields["type"] == "server_error"
    assert not any(word in fields["message"] for word in ("/", "os error", "sqlite", "psycopg"))
    return fields


def count(database: Database) -> dict[str, int]:
    with database.snapshot() as session:
        return {
            table.__tablename__: session.scalar(select(func.count()).select_from(table)) or 0
            for table in TABLES
        }


@contextmanager
def api_process(
    database_url: str, storage_url: str, *, largest_file_bytes: int | None = None
) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """The real server. With `largest_file_bytes` the system refuses to write more to a file, with an error
    like that of a full disk."""

    def limit() -> None:
        if largest_file_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file_bytes, resource.RLIM_INFINITY))

    port = free_port()
    process = subprocess.Popen(
        [*COMMAND, "--port", str(port)],
        env=environment(DATABASE_URL=database_url, STORAGE_URL=storage_url),
        stderr=subprocess.DEVNULL,
        preexec_fn=limit,
    )
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=5)
                break
            except httpx.ConnectError:
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.05)
        yield process, f"http://127.0.0.1:{port}/v1"
    finally:
        process.kill()
        process.wait(30)


@sqlite_only
def test_a_full_disk(
    database: Database, database_url: str, storage_url: str, storage: Storage, tenant: Tenant
) -> None:
    content = dataset(100_000)
    third = len(content) // 3 + 1
    limit = 4_500_000
    assert third < limit < len(content)
    with (
        api_process(database_url, storage_url, largest_file_bytes=limit) as (process, url),
        httpx.Client(base_url=url, headers=tenant.headers, timeout=60) as client,
    ):

        def send(data: bytes) -> httpx.Response:
            return client.post(f"/uploads/{upload_id}/parts", files={"data": data})

        fields = {"filename": "x", "mime_type": "x", "purpose": "fine-tune"}
        upload_id = client.post("/uploads", json={"bytes": len(content), **fields}).json()["id"]
        sent = [send(content[start : start + third]).json()["id"] for start in range(0, len(content), third)]
        stored = storage.keys("")
        answers = (
            client.post("/files", data={"purpose": "fine-tune"}, files={"file": content}),
            send(content),
            client.post(f"/uploads/{upload_id}/complete", json={"part_ids": sent}),
        )
        for answer in answers:
            assert error(answer, 507)["code"] == "storage_full"
        assert storage.keys("") == stored
        assert storage.delete_unfinished(before=time.time() + 60) == 0
        assert count(database) == {"files": 0, "uploads": 1, "upload_parts": 3, "jobs": 0}
        # Room again: what was acknowledged is enough to go on.
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        answer = client.post(
            f"/uploads/{upload_id}/complete",
            json={"part_ids": sent, "md5": hashlib.md5(content).hexdigest()},
        )
        assert answer.json()["file"]["bytes"] == len(content)


@sqlite_only
def test_a_full_disk_under_the_database(client: TestClient, database: Database, tenant: Tenant) -> None:
    fields = {"bytes": 1, "mime_type": "x" * 255, "purpose": "user_data"}
    acknowledged = []

    def full(connection: Any, _record: Any) -> None:
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count = {pages + 4}")

    database.engine.dispose()
    event.listen(database.engine, "connect", full)
    for i in range(200):
        answer = client.post("/uploads", json={**fields, "filename": f"{i}" * 80}, headers=tenant.headers)
        if answer.status_code != 200:
            break
        acknowledged.append(answer.json())
    assert error(answer, 507)["code"] == "storage_full"
    assert acknowledged
    event.remove(database.engine, "connect", full)
    database.engine.dispose()
    for upload in acknowledged:
        answer = client.get(f"/uploads/{upload['id']}", headers=tenant.headers)
        assert answer.json() == {**upload, "parts": []}
    assert count(database)["uploads"] == len(acknowledged)


class Outage:
    """Closes the test's PostgreSQL database to everybody, and opens it again."""

    def __init__(self, server_url: str, database_url: str) -> None:
        self._server_url = server_url
        self._name = database_url.split("?")[0].rsplit("/", 1)[1]

    def _run(self, *statements: str) -> None:
        with psycopg.connect(self._server_url, autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement)

    def begin(self) -> None:
        self._run(
            f"ALTER DATABASE {self._name} ALLOW_CONNECTIONS false",
            f"SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = '{self._name}'",
        )

    def end(self) -> None:
        self._run(f"ALTER DATABASE {self._name} ALLOW_CONNECTIONS true")


@pytest.fixture
def outage(postgres_url: str, database_url: str) -> Outage:
    return Outage(postgres_url, database_url)


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
@pytest.mark.parametrize("moment", ["before the request", "after the bytes are stored"])
def test_a_dead_database(
    client: TestClient,
    database: Database,
    storage: Storage,
    tenant: Tenant,
    outage: Outage,
    moment: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    content = dataset(20)
    with database.transaction() as session:
        make_base(session)
        file_id = make_file(session, tenant.project_id).id

    def post(path: str, **body: Any) -> Any:
        return client.post(path, headers=tenant.headers, **body)

    fields = {"filename": "x", "mime_type": "x", "purpose": "fine-tune"}
    upload_id = post("/uploads", json={"bytes": len(content), **fields}).json()["id"]
    part_id = post(f"/uploads/{upload_id}/parts", files={"data": content}).json()["id"]
    acknowledged = count(database)

    storing: dict[str, Callable[[], Any]] = {
        "file": lambda: post("/files", data={"purpose": "fine-tune"}, files={"file": content}),
        "part": lambda: post(f"/uploads/{upload_id}/parts", files={"data": b"x"}),
        "complete": lambda: post(f"/uploads/{upload_id}/complete", json={"part_ids": [part_id]}),
    }
    others: dict[str, Callable[[], Any]] = {
        "upload": lambda: post("/uploads", json={"bytes": 1, **fields}),
        "cancel": lambda: post(f"/uploads/{upload_id}/cancel"),
        "job": lambda: post("/fine_tuning/jobs", json={"model": BASE_ID, "training_file": file_id}),
        "read": lambda: client.get(f"/uploads/{upload_id}", headers=tenant.headers),
    }
    if moment == "before the request":
        outage.begin()
        for send in (storing | others).values():
            assert error(send(), 503)["code"] == "database_unavailable"
        outage.end()
    else:
        put = Storage.put

        def put_and_die(self: Storage, key: str, stored: Any) -> None:
            put(self, key, stored)
            outage.begin()

        for send in storing.values():
            with monkeypatch.context() as patch:
                patch.setattr(Storage, "put", put_and_die)
                assert error(send(), 503)["code"] == "database_unavailable"
            outage.end()

    assert count(database) == acknowledged
    # Whether a commit arrived is not known while the database is gone, so bytes may stay; not for long.
    sweep(database, storage, now=time.time() + 3599)
    assert f"uploads/{upload_id}/{part_id}" in storage.keys("")
    for send in (storing["file"], others["job"], storing["complete"]):
        assert send().status_code == 200


@sqlite_only
@pytest.mark.parametrize("route", ["files", "parts"])
def test_a_process_killed_in_the_middle_of_an_upload(
    database: Database, database_url: str, storage_url: str, storage: Storage, tenant: Tenant, route: str
) -> None:
    folder = Path(storage_url.removeprefix("file://"))

    def unfinished() -> list[Path]:
        return [path for path in folder.rglob("*#*") if path.stat().st_size]

    with api_process(database_url, storage_url) as (process, url):
        path, name = "/files", "file"
        if route == "parts":
            fields = {"bytes": 9, "filename": "x", "mime_type": "x", "purpose": "fine-tune"}
            answer = httpx.post(f"{url}/uploads", json=fields, headers=tenant.headers)
            path, name = f"/uploads/{answer.json()['id']}/parts", "data"
        before = count(database)
        host, port = url.removeprefix("http://").removesuffix("/v1").split(":")
        with socket.create_connection((host, int(port)), timeout=30) as connection:
            connection.sendall(
                b"POST /v1%b HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %b\r\n"
                b"Content-Type: multipart/form-data; boundary=b\r\nContent-Length: 60000000\r\n\r\n"
                b'--b\r\nContent-Disposition: form-data; name=%b; filename="x"\r\n\r\n'
                % (path.encode(), tenant.key.encode(), name.encode())
            )
            connection.sendall(dataset(120_000))
            deadline = time.monotonic() + 30
            while not unfinished():
                assert time.monotonic() < deadline
                time.sleep(0.02)
            process.send_signal(signal.SIGKILL)
            process.wait(30)
    assert count(database) == before
    assert storage.keys("") == []
    assert len(unfinished()) == 1
    sweep(database, storage, now=time.time())
    assert len(unfinished()) == 1, "it might still be growing"
    sweep(database, storage, now=time.time() + 2 * 3600)
    assert unfinished() == []
    with api_process(database_url, storage_url) as (_, url):
        answer = httpx.get(f"{url}/files", headers=tenant.headers)
        assert answer.json()["data"] == []
