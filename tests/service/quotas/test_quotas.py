"""What a project may store, queue and run: refused beyond, counted right, and also when two ask at once."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient

from service.db import Database
from service.models import File, ProjectQuota
from service.quotas import usage
from service.storage import Storage
from tests.builders import (
    BASE_ID,
    Tenant,
    make_adapter,
    make_base,
    make_file,
    make_job,
    make_part,
    make_tenant,
    make_upload,
)

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC).timestamp()


def allow(database: Database, tenant: Tenant, **numbers: int) -> None:
    with database.transaction() as session:
        session.merge(ProjectQuota(project_id=tenant.project_id, **numbers))


def refused(answer: httpx.Response, name: str, *, retry: bool = False) -> dict[str, Any]:
    assert answer.status_code == 429, answer.text
    error: dict[str, Any] = answer.json()["error"]
    assert (error["type"], error["code"]) == ("insufficient_quota", "quota_exceeded")
    assert error["quota"]["name"] == name
    for word in (name, str(error["quota"]["used"]), str(error["quota"]["limit"])):
        assert word in error["message"]
    if retry:
        assert (answer.headers["retry-after"], "x-should-retry" in answer.headers) == ("30", False)
    else:
        assert (answer.headers["x-should-retry"], "retry-after" in answer.headers) == ("false", False)
    return error


def used(client: TestClient, tenant: Tenant, name: str) -> Any:
    return client.get("/usage", headers=tenant.headers).json()["quotas"][name]["used"]


def post_file(client: TestClient, tenant: Tenant, content: bytes) -> httpx.Response:
    answer: httpx.Response = client.post(
        "/files", data={"purpose": "user_data"}, files={"file": content}, headers=tenant.headers
    )
    return answer


def new_job(database: Database, tenant: Tenant) -> dict[str, str]:
    with database.transaction() as session:
        make_base(session)
        return {"model": BASE_ID, "training_file": make_file(session, tenant.project_id).id}


def test_storage_holds_files_parts_and_adapters(database: Database, tenant: Tenant) -> None:
    with database.transaction() as session:
        make_file(session, tenant.project_id, bytes=1)
        make_file(session, tenant.project_id, bytes=2, purpose="fine-tune-results")
        make_file(session, tenant.project_id, bytes=4, deleted_at=1.0)
        for status, num_bytes in (("pending", 8), ("completed", 16), ("cancelled", 32)):
            make_part(session, make_upload(session, tenant.project_id, status=status), bytes=num_bytes)
        for num_bytes, deleted_at in ((128, None), (256, 1.0)):
            job = make_job(session, tenant.project_id, status="succeeded", stage="publish")
            make_adapter(session, job, bytes=num_bytes, deleted_at=deleted_at)
            session.get_one(File, job.training_file_id).bytes = 0
    stranger = make_tenant(database)
    with database.transaction() as session:
        make_file(session, stranger.project_id, bytes=64)
        assert usage.storage_bytes(session, tenant.project_id) == 1 + 2 + 8 + 128
        assert usage.storage_bytes(session, stranger.project_id) == 64
        assert usage.storage_bytes(session, "proj_x") == 0


def test_a_file_beyond_the_quota(
    client: TestClient, database: Database, storage: Storage, tenant: Tenant
) -> None:
    allow(database, tenant, storage_bytes=1000)
    assert post_file(client, tenant, b"x" * 900).status_code == 200
    error = refused(post_file(client, tenant, b"x" * 101), "storage_bytes")
    assert error["quota"] == {"name": "storage_bytes", "used": 900, "limit": 1000}
    assert len(storage.keys("files")) == 1
    assert post_file(client, tenant, b"x" * 100).status_code == 200
    assert used(client, tenant, "storage_bytes") == 1000
    file_id = client.get("/files", headers=tenant.headers).json()["data"][0]["id"]
    assert client.delete(f"/files/{file_id}", headers=tenant.headers).status_code == 200
    assert post_file(client, tenant, b"x" * 100).status_code == 200


def test_a_body_that_cannot_fit_is_not_read(client: TestClient, database: Database, tenant: Tenant) -> None:
    allow(database, tenant, storage_bytes=1000)
    with database.transaction() as session:
        upload_id = make_upload(session, tenant.project_id, bytes=10**9).id
    read: list[int] = []

    def body(announced: bool) -> Iterator[bytes]:
        for _ in range(100):
            read.append(1)
            yield b"x" * 65536

    for path in ("/files", f"/uploads/{upload_id}/parts"):
        headers = {**tenant.headers, "content-type": "multipart/form-data; boundary=b"}
        announced = {**headers, "content-length": str(100 * 65536)}
        refused(client.post(path, content=b"x" * 65536, headers=announced), "storage_bytes")
        start = b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nuser_data\r\n' * (
            path == "/files"
        )
        name = b"file" if path == "/files" else b"data"
        start += b'--b\r\nContent-Disposition: form-data; name="' + name + b'"; filename="x"\r\n\r\n'

        def chunks(start: bytes = start) -> Iterator[bytes]:
            yield start
            yield from body(False)

        refused(client.post(path, content=chunks(), headers=headers), "storage_bytes")


def test_parts_and_uploads(client: TestClient, database: Database, storage: Storage, tenant: Tenant) -> None:
    allow(database, tenant, storage_bytes=1000)
    fields = {"filename": "x", "mime_type": "x", "purpose": "user_data"}
    answer = client.post("/uploads", json={"bytes": 1001, **fields}, headers=tenant.headers)
    refused(answer, "storage_bytes")
    upload = client.post("/uploads", json={"bytes": 900, **fields}, headers=tenant.headers).json()
    parts = f"/uploads/{upload['id']}/parts"
    part = client.post(parts, files={"data": b"x" * 900}, headers=tenant.headers).json()
    refused(client.post(parts, files={"data": b"y" * 101}, headers=tenant.headers), "storage_bytes")
    assert len(storage.keys("uploads")) == 1
    # Completing needs no more room: the parts become the file.
    answer = client.post(
        f"/uploads/{upload['id']}/complete", json={"part_ids": [part["id"]]}, headers=tenant.headers
    )
    assert answer.status_code == 200, answer.text
    assert used(client, tenant, "storage_bytes") == 900


def test_two_files_at_once(client: TestClient, database: Database, storage: Storage, tenant: Tenant) -> None:
    """Both see room before they send; one finds none at the end."""
    allow(database, tenant, storage_bytes=1000)
    statuses: list[int] = []
    threads = [
        threading.Thread(target=lambda: statuses.append(post_file(client, tenant, b"x" * 600).status_code))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(statuses) == [200, 429, 429, 429]
    assert len(storage.keys("files")) == 1


def test_a_full_queue(client: TestClient, database: Database, tenant: Tenant) -> None:
    allow(database, tenant, queued_jobs=3)
    body = new_job(database, tenant)
    with database.transaction() as session:
        make_job(session, tenant.project_id, status="paused")
        make_job(session, tenant.project_id, status="running")
        make_job(session, make_tenant_in(session).project_id)
    ids = [client.post("/fine_tuning/jobs", json=body, headers=tenant.headers).json()["id"] for _ in range(2)]
    refused(client.post("/fine_tuning/jobs", json=body, headers=tenant.headers), "queued_jobs", retry=True)
    refused(
        client.post(f"/fine_tuning/jobs/{ids[0]}/retry", headers=tenant.headers), "queued_jobs", retry=True
    )
    client.post(f"/fine_tuning/jobs/{ids[0]}/cancel", headers=tenant.headers)
    assert client.post(f"/fine_tuning/jobs/{ids[0]}/retry", headers=tenant.headers).status_code == 200


def make_tenant_in(session: Any) -> Tenant:
    """Another project, in this transaction: SQLite has one writer at a time."""
    from service import auth

    organization = auth.create_organization(session, name="o", now=1.0)
    project = auth.create_project(session, organization_id=organization.id, name="o", now=1.0)
    return Tenant(organization.id, project.id, "")


def test_an_answer_given_before_is_not_refused(
    client: TestClient, database: Database, tenant: Tenant
) -> None:
    """A retry of the request that took the last place."""
    allow(database, tenant, queued_jobs=1)
    body = new_job(database, tenant)
    headers = {**tenant.headers, "idempotency-key": "k"}
    first = client.post("/fine_tuning/jobs", json=body, headers=headers)
    again = client.post("/fine_tuning/jobs", json=body, headers=headers)
    assert (first.status_code, again.status_code, again.json()) == (200, 200, first.json())


@pytest.mark.parametrize("how", ["key", "retry"])
def test_a_file_that_was_stored_before_is_not_refused(
    client: TestClient, database: Database, tenant: Tenant, how: str
) -> None:
    """The client sends again what filled the quota, because the answer was lost."""
    allow(database, tenant, storage_bytes=1_000_000)
    answers = [
        client.post(
            "/files",
            data={"purpose": "user_data"},
            files={"file": b"x" * 900_000},
            headers={**tenant.headers, name: value},
        )
        for name, value in (
            [("idempotency-key", "k")] * 2
            if how == "key"
            else [("x-stainless-retry-count", "0"), ("x-stainless-retry-count", "1")]
        )
    ]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert answers[0].json() == answers[1].json()
    refused(post_file(client, tenant, b"x" * 900_000), "storage_bytes")


def test_many_jobs_at_once(client: TestClient, database: Database, tenant: Tenant) -> None:
    allow(database, tenant, queued_jobs=3)
    body = new_job(database, tenant)
    statuses: list[int] = []

    def post() -> None:
        answer = client.post("/fine_tuning/jobs", json=body, headers=tenant.headers)
        statuses.append(answer.status_code)

    threads = [threading.Thread(target=post) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(statuses) == [200] * 3 + [429] * 5


def test_jobs_of_a_day(client: TestClient, database: Database, tenant: Tenant) -> None:
    allow(database, tenant, jobs_per_day=2)
    body = new_job(database, tenant)
    now = time.time()
    with database.transaction() as session:
        make_job(session, tenant.project_id, created_at=now - 86401, status="failed")
        make_job(session, tenant.project_id, created_at=now - 86300, status="failed")
    assert client.post("/fine_tuning/jobs", json=body, headers=tenant.headers).status_code == 200
    refused(client.post("/fine_tuning/jobs", json=body, headers=tenant.headers), "jobs_per_day")
    shown = client.get("/usage", headers=tenant.headers).json()["quotas"]["jobs_per_day"]
    assert shown == {"used": 2, "limit": 2, "resets_at": pytest.approx(now + 100, abs=2)}
