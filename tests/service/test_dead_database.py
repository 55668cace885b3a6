"""A dead database: said in OpenAI's shape, and nothing acknowledged is lost."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import event
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from service.db import Database
from service.storage import Storage
from tests.builders import BASE_ID, Tenant, dataset, make_base, make_file
from tests.service.failing import count, error
from workers.sweep import sweep


class Outage:
    """Closes the test's PostgreSQL database to everybody, and opens it again."""

    def __init__(self, server_url: str, database_url: str) -> None:
        self._server_url = server_url
        self._name = database_url.split("?", 1)[0].rsplit("/", 1)[1]

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


@pytest.mark.parametrize("route", ["files", "parts", "complete"])
def test_a_commit_whose_answer_was_lost(
    client: TestClient, storage: Storage, tenant: Tenant, route: str
) -> None:
    """The connection to the database breaks just after the commit: nobody knows that it happened, so the
    bytes must stay, and the client's retry finds what the first attempt made."""
    content = dataset(20)
    fields = {"bytes": len(content), "filename": "x", "mime_type": "x", "purpose": "fine-tune"}
    upload_id = client.post("/uploads", json=fields, headers=tenant.headers).json()["id"]
    parts = f"/uploads/{upload_id}/parts"
    sent = client.post(parts, files={"data": content}, headers=tenant.headers).json()
    path, body = {
        "files": ("/files", {"data": {"purpose": "fine-tune"}, "files": {"file": content}}),
        "parts": (parts, {"files": {"data": content}}),
        "complete": (f"/uploads/{upload_id}/complete", {"json": {"part_ids": [sent["id"]]}}),
    }[route]

    def lose(_session: Session) -> None:
        raise OperationalError("COMMIT", {}, Exception("server closed the connection unexpectedly"))

    event.listen(Session, "after_commit", lose)
    try:
        answer = client.post(path, headers={**tenant.headers, "x-stainless-retry-count": "0"}, **body)
    finally:
        event.remove(Session, "after_commit", lose)
    assert error(answer, 503)["code"] == "database_unavailable"

    again = client.post(path, headers={**tenant.headers, "x-stainless-retry-count": "1"}, **body)
    assert again.status_code == 200, again.text
    made = again.json()
    if route == "parts":
        assert again.headers["idempotent-replayed"] == "true"
        done = client.post(
            f"/uploads/{upload_id}/complete", json={"part_ids": [made["id"]]}, headers=tenant.headers
        )
        made = done.json()
    file_id = made["id"] if route == "files" else made["file"]["id"]
    assert client.get(f"/files/{file_id}/content", headers=tenant.headers).content == content
    listed = client.get("/files", headers=tenant.headers).json()["data"]
    assert [file["id"] for file in listed] == [file_id]
