"""Files with an end, and what a purpose allows."""

from __future__ import annotations

import hashlib
import time
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import update

from service.db import Database
from service.files import service as files_service
from service.jobs.states import TERMINAL, Status
from service.models import File, Job
from service.storage import Storage
from tests.builders import BASE_ID, Tenant, dataset, make_base, make_file, make_job
from tests.service.files.test_upload import refused, sqlite_only, stored, upload

EXPIRES = {"expires_after[anchor]": "created_at"}


def expire(database: Database) -> None:
    with database.transaction() as session:
        session.execute(update(File).values(expires_at=time.time() - 1))


@pytest.mark.parametrize("seconds", [3600, 2_592_000])
def test_a_file_says_when_it_expires(client: TestClient, tenant: Tenant, seconds: int) -> None:
    before = time.time()
    file = upload(client, tenant, dataset(10), **EXPIRES, **{"expires_after[seconds]": str(seconds)}).json()
    assert int(before) + seconds <= file["expires_at"] <= time.time() + seconds
    assert client.get(f"/files/{file['id']}", headers=tenant.headers).json() == file
    assert upload(client, tenant, dataset(10)).json()["expires_at"] is None


@sqlite_only
@pytest.mark.parametrize(
    "seconds", ["3599", "2592001", "-3600", "3600.0", "1e4", "", "x", "9" * 6000, "³600"]
)
def test_other_times_are_refused(
    client: TestClient, database: Database, storage: Storage, tenant: Tenant, seconds: str
) -> None:
    answer = upload(client, tenant, dataset(10), **EXPIRES, **{"expires_after[seconds]": seconds})
    error = refused(answer)
    assert (error["param"], error["code"]) == ("expires_after[seconds]", "invalid_value")
    assert stored(database, storage) == ([], [])


def test_an_expired_file_is_not_there(client: TestClient, database: Database, tenant: Tenant) -> None:
    file_id = upload(client, tenant, dataset(10)).json()["id"]
    with database.transaction() as session:
        make_base(session)
    expire(database)
    for method, path in (("GET", ""), ("GET", "/content"), ("DELETE", "")):
        error = refused(client.request(method, f"/files/{file_id}{path}", headers=tenant.headers), 404)
        assert error["code"] == "file_not_found"
    assert client.get("/files", headers=tenant.headers).json()["data"] == []
    kept = upload(client, tenant, dataset(11)).json()["id"]
    bodies: list[dict[str, Any]] = [
        {"training_file": file_id},
        {"training_file": kept, "validation_file": file_id},
    ]
    for body in bodies:
        answer = client.post("/fine_tuning/jobs", json={"model": BASE_ID, **body}, headers=tenant.headers)
        assert refused(answer, 404)["param"] == list(body)[-1]


def test_expired_bytes_go_and_the_row_stays(
    client: TestClient, database: Database, storage: Storage, tenant: Tenant
) -> None:
    file_id = upload(client, tenant, dataset(10)).json()["id"]
    kept = upload(client, tenant, dataset(11)).json()["id"]
    with database.transaction() as session:
        session.execute(update(File).where(File.id == file_id).values(expires_at=1000.0))
        make_job(session, tenant.project_id, training_file_id=file_id, status="succeeded", stage="publish")
    assert files_service.delete_expired(database, storage, now=999.0) == []
    assert files_service.delete_expired(database, storage, now=1000.0) == [f"files/{file_id}"]
    assert files_service.delete_expired(database, storage, now=1001.0) == []
    files, keys = stored(database, storage)
    assert {file.id: file.deleted_at for file in files} == {file_id: 1000.0, kept: None}
    assert keys == [f"files/{kept}"]


@pytest.mark.parametrize("column", ["training_file_id", "validation_file_id"])
def test_a_job_that_has_not_ended_keeps_its_files(
    database: Database, storage: Storage, tenant: Tenant, column: str
) -> None:
    for status in Status:
        with database.transaction() as session:
            file = make_file(session, tenant.project_id, expires_at=1000.0)
            storage.put(file.storage_key, b"data")
            job = make_job(session, tenant.project_id, status=status.value, **{column: file.id})
        deleted = files_service.delete_expired(database, storage, now=2000.0)
        assert deleted == ([file.storage_key] if status in TERMINAL else [])
        with database.transaction() as session:
            session.get_one(Job, job.id).status = "cancelled"
        files_service.delete_expired(database, storage, now=2000.0)
        assert storage.keys("files") == []


@sqlite_only
@pytest.mark.parametrize("purpose", ["assistants", "batch", "vision", "evals"])
def test_purposes_that_are_not_ours_are_refused_with_the_reason(
    client: TestClient, database: Database, storage: Storage, tenant: Tenant, purpose: str
) -> None:
    error = refused(upload(client, tenant, dataset(10), purpose=purpose))
    assert (error["param"], error["code"]) == ("purpose", "unsupported_purpose")
    assert f"{purpose!r} is not supported: this server" in error["message"]
    assert stored(database, storage) == ([], [])


@sqlite_only
@pytest.mark.parametrize("file_first", [True, False])
@pytest.mark.parametrize("content", [b"\xff\x00 anything", b"", dataset(10), b"{}\n" * 5000])
def test_user_data_is_only_stored(
    client: TestClient, database: Database, tenant: Tenant, content: bytes, file_first: bool
) -> None:
    parts = [
        b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nuser_data\r\n',
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n' + content + b"\r\n",
    ]
    body = b"".join(reversed(parts) if file_first else parts) + b"--b--\r\n"
    headers = {**tenant.headers, "content-type": "multipart/form-data; boundary=b"}
    file = client.post("/files", content=body, headers=headers).json()
    assert (file["purpose"], file["status"], file["num_examples"]) == ("user_data", "processed", None)
    assert (file["bytes"], file["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
    assert client.get(f"/files/{file['id']}/content", headers=tenant.headers).content == content
    with database.transaction() as session:
        make_base(session)
    job = {"model": BASE_ID, "training_file": file["id"]}
    error = refused(client.post("/fine_tuning/jobs", json=job, headers=tenant.headers))
    assert (error["param"], error["code"]) == ("training_file", "unsupported_purpose")
