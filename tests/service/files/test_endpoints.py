"""Files over HTTP: listing, reading and deleting."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi.testclient import TestClient

from service.db import Database
from service.jobs.states import TERMINAL, Status
from service.storage import Storage
from tests.builders import Tenant, dataset, make_file, make_job
from tests.service.files.test_upload import refused, sqlite_only, upload


def test_listing_pages_in_both_orders_and_by_purpose(
    client: TestClient, database: Database, tenant: Tenant
) -> None:
    with database.transaction() as session:
        # Three share their time of creation: the id decides.
        for i, created_at in enumerate([1.0, 2.0, 2.0, 2.0, 3.0]):
            make_file(session, tenant.project_id, id=f"file-{i}", created_at=created_at)
        make_file(session, tenant.project_id, id="file-9", created_at=4.0, purpose="fine-tune-results")

    def page(**params: Any) -> dict[str, Any]:
        body: dict[str, Any] = client.get("/files", params=params, headers=tenant.headers).json()
        return body

    def walk(**params: Any) -> list[str]:
        found: list[str] = []
        while True:
            body = page(limit=2, **params, **({"after": found[-1]} if found else {}))
            found += [file["id"] for file in body["data"]]
            if not body["has_more"]:
                return found

    everything = [f"file-{i}" for i in (9, 4, 3, 2, 1, 0)]
    assert [file["id"] for file in page()["data"]] == everything
    assert walk() == everything
    assert walk(order="asc") == everything[::-1]
    assert walk(purpose="fine-tune") == everything[1:]
    assert page(purpose="batch") == {
        "object": "list",
        "data": [],
        "first_id": "",
        "last_id": "",
        "has_more": False,
    }
    body = page(limit=2)
    assert (body["first_id"], body["last_id"], body["has_more"]) == ("file-9", "file-4", True)


def test_a_client_may_delete_while_it_pages(client: TestClient, database: Database, tenant: Tenant) -> None:
    with database.transaction() as session:
        for i in range(3):
            make_file(session, tenant.project_id, id=f"file-{i}", created_at=float(i))
    after: dict[str, str] = {}
    seen = []
    for _ in range(3):
        body = client.get("/files", params={"limit": "1", **after}, headers=tenant.headers).json()
        seen.append(body["data"][0]["id"])
        client.delete(f"/files/{seen[-1]}", headers=tenant.headers)
        after = {"after": seen[-1]}
    assert seen == ["file-2", "file-1", "file-0"]


def test_deleting_removes_the_bytes(client: TestClient, storage: Storage, tenant: Tenant) -> None:
    file_id = upload(client, tenant, dataset(10)).json()["id"]
    answer = client.delete(f"/files/{file_id}", headers=tenant.headers)
    assert answer.json() == {"id": file_id, "object": "file", "deleted": True}
    assert storage.keys("files") == []
    for method, path in (("GET", ""), ("GET", "/content"), ("DELETE", "")):
        error = refused(client.request(method, f"/files/{file_id}{path}", headers=tenant.headers), 404)
        assert error["code"] == "file_not_found"


@sqlite_only
def test_bytes_that_are_just_being_deleted_are_not_found(
    client: TestClient, storage: Storage, tenant: Tenant
) -> None:
    file_id = upload(client, tenant, dataset(10)).json()["id"]
    storage.delete(f"files/{file_id}")
    refused(client.get(f"/files/{file_id}/content", headers=tenant.headers), 404)


@pytest.mark.parametrize("column", ["training_file_id", "validation_file_id"])
def test_a_file_is_kept_while_a_job_needs_it(
    client: TestClient, database: Database, tenant: Tenant, column: str
) -> None:
    for status in Status:
        with database.transaction() as session:
            file_id = make_file(session, tenant.project_id).id
            job = make_job(session, tenant.project_id, status=status.value, **{column: file_id})
        answer = client.delete(f"/files/{file_id}", headers=tenant.headers)
        if status in TERMINAL:
            assert answer.status_code == 200
        else:
            error = refused(answer)
            assert error["code"] == "file_in_use"
            assert job.id in error["message"]
