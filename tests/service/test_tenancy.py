"""Two tenants, every operation: what belongs to the other is not there, and nothing of it changes."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import select

from service.db import Database
from service.jobs.events import add_event
from service.models import Adapter, File, Job, JobEvent
from service.storage import Storage
from tests.builders import BASE_ID, Tenant, make_adapter, make_file, make_job, make_tenant

ID_OPERATIONS = [
    ("GET", "/v1/files/{file_id}"),
    ("GET", "/v1/files/{file_id}/content"),
    ("DELETE", "/v1/files/{file_id}"),
    ("GET", "/v1/fine_tuning/jobs/{job_id}"),
    ("POST", "/v1/fine_tuning/jobs/{job_id}/cancel"),
    ("GET", "/v1/fine_tuning/jobs/{job_id}/events"),
    ("GET", "/v1/fine_tuning/jobs/{job_id}/safety_report"),
    ("GET", "/v1/fine_tuning/jobs/{job_id}/adapter"),
    ("GET", "/v1/models/{model}"),
]
CURSORS = [("/v1/files", "file_id"), ("/v1/fine_tuning/jobs", "job_id")]
COLLECTIONS = [
    ("POST", "/v1/files"),
    ("GET", "/v1/files"),
    ("POST", "/v1/fine_tuning/jobs"),
    ("GET", "/v1/fine_tuning/jobs"),
    ("GET", "/v1/models"),
    ("POST", "/v1/fine_tuning/validate"),
    ("POST", "/v1/fine_tuning/preview"),
    ("POST", "/v1/fine_tuning/estimate"),
]


@pytest.fixture
def owned(database: Database, storage: Storage, tenant: Tenant) -> dict[str, str]:
    """Everything a tenant can have, as path parameters."""
    with database.transaction() as session:
        file = make_file(session, tenant.project_id)
        storage.put(file.storage_key, b"data")
        job = make_job(
            session,
            tenant.project_id,
            training_file_id=file.id,
            status="succeeded",
            stage="publish",
            safety_report={"summary": {}},
        )
        event = add_event(session, job.id, "hello", now=1.0)
        adapter = make_adapter(session, job)
        storage.put(adapter.storage_key, b"data")
        return {"file_id": file.id, "job_id": job.id, "model": adapter.model_id, "event_id": event.id}


def rows(database: Database) -> list[Any]:
    with database.snapshot() as session:
        return [
            {a.key: getattr(row, a.key) for a in table.__mapper__.column_attrs}
            for table in (File, Job, Adapter, JobEvent)
            for row in session.scalars(select(table))
        ]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_the_lists_above_hold_every_route(client: TestClient) -> None:
    description = client.get("http://testserver/openapi.json").json()
    described = {
        (method.upper(), path)
        for path, operations in description["paths"].items()
        for method in operations
        if path.startswith("/v1")
    }
    assert described == {*ID_OPERATIONS, *COLLECTIONS}


@pytest.mark.parametrize(("method", "path"), ID_OPERATIONS)
def test_a_foreign_id_is_not_found(
    client: TestClient, database: Database, owned: dict[str, str], method: str, path: str
) -> None:
    stranger = make_tenant(database)
    before = rows(database)
    url = "http://testserver" + path.format(**owned)
    foreign = client.request(method, url, headers=stranger.headers)
    assert foreign.status_code == 404, foreign.text
    # And the same words as for an id that never existed.
    unknown = {name: "x" * len(value) for name, value in owned.items()}
    never = client.request(method, "http://testserver" + path.format(**unknown), headers=stranger.headers)
    scrubbed = foreign.text
    for name, value in owned.items():
        scrubbed = scrubbed.replace(value, unknown[name])
    assert scrubbed == never.text
    assert rows(database) == before


@pytest.mark.parametrize(("method", "path"), ID_OPERATIONS)
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_the_owner_finds_each(
    client: TestClient, tenant: Tenant, owned: dict[str, str], method: str, path: str
) -> None:
    """So that the 404s above are about whose it is."""
    answer = client.request(method, "http://testserver" + path.format(**owned), headers=tenant.headers)
    expected = 400 if path.endswith("/cancel") else 200
    assert answer.status_code == expected, answer.text


@pytest.mark.parametrize(("method", "path"), ID_OPERATIONS + COLLECTIONS)
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_nothing_without_a_key(
    client: TestClient, database: Database, owned: dict[str, str], method: str, path: str
) -> None:
    """Nor is a body looked at: a malformed one makes no difference."""
    before = rows(database)
    answer = client.request(method, "http://testserver" + path.format(**owned), content=b"{malformed")
    assert answer.status_code == 401
    assert rows(database) == before


def test_lists_hold_only_ones_own(client: TestClient, database: Database, owned: dict[str, str]) -> None:
    stranger = make_tenant(database)
    assert client.get("/files", headers=stranger.headers).json()["data"] == []
    assert client.get("/fine_tuning/jobs", headers=stranger.headers).json()["data"] == []
    models = client.get("/models", headers=stranger.headers).json()["data"]
    assert [model["id"] for model in models] == [BASE_ID]


def test_foreign_ids_inside_requests(client: TestClient, database: Database, owned: dict[str, str]) -> None:
    stranger = make_tenant(database)
    with database.transaction() as session:
        own = make_file(session, stranger.project_id).id
        own_job = make_job(session, stranger.project_id).id
    for path, name in CURSORS:
        answer = client.get(
            f"http://testserver{path}", params={"after": owned[name]}, headers=stranger.headers
        )
        assert (answer.status_code, answer.json()["error"]["param"]) == (404, "after")
    answer = client.get(
        f"/fine_tuning/jobs/{own_job}/events",
        params={"after": owned["event_id"]},
        headers=stranger.headers,
    )
    assert (answer.status_code, answer.json()["error"]["param"]) == (404, "after")
    for body, param in (
        ({"training_file": owned["file_id"]}, "training_file"),
        ({"training_file": own, "validation_file": owned["file_id"]}, "validation_file"),
        ({"training_file": own, "model": owned["model"]}, "model"),
    ):
        answer = client.post("/fine_tuning/jobs", json={"model": BASE_ID, **body}, headers=stranger.headers)
        assert (answer.status_code, answer.json()["error"]["param"]) == (404, param)
