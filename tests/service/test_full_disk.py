"""A full disk, or a killed process: said in OpenAI's shape, and nothing acknowledged is lost."""

from __future__ import annotations

import hashlib
import resource
import signal
import socket
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import event

from service.db import Database
from service.storage import Storage
from tests.builders import Tenant, dataset
from tests.service.failing import api_process, count, error
from tests.service.files.test_upload import sqlite_only
from workers.sweep import sweep


@sqlite_only
def test_a_full_disk(
    database: Database, database_url: str, storage_url: str, storage: Storage, tenant: Tenant
) -> None:
    content = dataset(100_000)
    third = len(content) // 3 + 1
    limit = 4_500_000
    assert third < limit < len(content)
    with (
        api_process(database_url, storage_url) as (process, url),
        httpx.Client(base_url=url, headers=tenant.headers, timeout=60) as client,
    ):
        # The system now refuses to write more than this to a file, with an error like that of a full disk.
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

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
