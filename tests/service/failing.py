"""What the tests of failures share."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from sqlalchemy import func, select

from service.db import Database
from service.models import File, Job, Upload, UploadPart
from tests.service.test_main import COMMAND, environment, free_port

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
def api_process(database_url: str, storage_url: str) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """The real server, and its URL."""
    port = free_port()
    process = subprocess.Popen(
        [*COMMAND, "--port", str(port)],
        env=environment(DATABASE_URL=database_url, STORAGE_URL=storage_url),
        stderr=subprocess.DEVNULL,
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
