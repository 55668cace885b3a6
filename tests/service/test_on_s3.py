"""The service on a bucket: the flows that touch the storage, and what clients see while the store fails."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import update

from service.db import Database
from service.models import Adapter, File, Upload, UploadPart
from service.storage import Storage
from service.storage.s3 import PART_BYTES
from service.storage.s3_url import s3_place
from tests import s3
from tests.builders import Tenant, dataset
from tests.s3 import DROP, SLOW_DOWN, Fault, FaultyS3
from tests.service.adapters.test_downloads import CONTENTS, release_package
from tests.service.failing import count, error
from tests.service.uploads.uploader import Uploader, cut, num_rows
from workers.sweep import sweep

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)

OUTAGES = [SLOW_DOWN, Fault(500), DROP, Fault(seconds=30)]


@pytest.fixture
def storage_url(faulty_s3_url: str) -> str:
    return faulty_s3_url


@pytest.fixture
def uploader(client: TestClient, tenant: Tenant) -> Uploader:
    return Uploader(client, tenant)


def send(client: TestClient, tenant: Tenant, content: bytes) -> Any:
    return client.post(
        "/files", data={"purpose": "fine-tune"}, files={"file": content}, headers=tenant.headers
    )


def test_a_file_comes_and_goes(client: TestClient, tenant: Tenant, storage: Storage) -> None:
    content = dataset(180_000)
    assert len(content) > PART_BYTES
    file = send(client, tenant, content).json()
    assert file["bytes"] == len(content)
    assert client.get(f"/files/{file['id']}/content", headers=tenant.headers).content == content
    assert storage.keys("") == [f"files/{file['id']}"]
    refused = send(client, tenant, content + b"not json\n")
    assert refused.status_code == 400
    assert storage.keys("") == [f"files/{file['id']}"]
    assert client.delete(f"/files/{file['id']}", headers=tenant.headers).status_code == 200
    assert storage.keys("") == []


def test_a_file_in_parts(uploader: Uploader, database: Database, storage: Storage) -> None:
    content = dataset(200)
    upload_id = uploader.begin(len(content))
    parts = [uploader.part(upload_id, piece) for piece in cut(content, 7, 5000)]
    assert len(storage.keys("uploads")) == 3
    answer = uploader.complete(upload_id, parts, md5=hashlib.md5(content).hexdigest())
    assert uploader.content(answer.json()["file"]["id"]) == content
    assert storage.keys("uploads") == []
    assert num_rows(database, UploadPart) == 0
    cancelled = uploader.begin(3)
    uploader.part(cancelled, b"abc")
    uploader.cancel(cancelled)
    assert storage.keys("uploads") == []


def test_an_adapter_and_ranges_of_it(
    client: TestClient, database: Database, storage: Storage, tenant: Tenant, tmp_path: Path
) -> None:
    released = release_package(database, storage, tenant, tmp_path)
    answer = client.get(released.url, headers=tenant.headers)
    assert (answer.status_code, answer.content) == (200, released.tar)
    head = client.head(released.url, headers=tenant.headers)
    assert head.headers["content-length"] == str(len(released.tar))
    for start, end in ((0, 0), (100, 1_999_999), (len(released.tar) - 1, len(released.tar) - 1)):
        headers = {**tenant.headers, "Range": f"bytes={start}-{end}"}
        answer = client.get(released.url, headers=headers)
        assert (answer.status_code, answer.content) == (206, released.tar[start : end + 1])
    for name, content in CONTENTS.items():
        answer = client.get(f"{released.url}/files/{name}", headers=tenant.headers)
        assert (answer.status_code, answer.content) == (200, content)


def test_what_is_over_is_swept(
    client: TestClient,
    database: Database,
    storage: Storage,
    storage_url: str,
    s3_endpoint: str,
    tenant: Tenant,
    uploader: Uploader,
    tmp_path: Path,
) -> None:
    bucket = s3_place(storage_url).bucket
    kept = send(client, tenant, dataset(10)).json()["id"]
    released = release_package(database, storage, tenant, tmp_path)
    upload_id = uploader.begin(3)
    uploader.part(upload_id, b"abc")
    storage.put("files/file-without-a-row", b"x")
    storage.put(f"private/{released.job_id}/1/train/x", b"unsanitised")
    storage.put(f"adapters/{released.job_id}/7.tar", b"never released")
    with s3.s3_client(s3_endpoint) as client_of_s3:
        client_of_s3.create_multipart_upload(Bucket=bucket, Key="below/files/half")
    with database.transaction() as session:
        session.execute(update(Upload).values(expires_at=time.time() - 86400))
    swept = sweep(database, storage, now=time.time())
    assert f"private/{released.job_id}/1/train/x" in swept
    assert storage.keys("") == sorted([released.key, f"files/{kept}", "files/file-without-a-row"])
    sweep(database, storage, now=time.time() + 2 * 3600)
    assert s3.unfinished_uploads(s3_endpoint, bucket) == []
    assert storage.keys("") == sorted([released.key, f"files/{kept}"])
    with database.transaction() as session:
        session.execute(update(Adapter).values(expires_at=time.time() - 1))
        session.execute(update(File).values(expires_at=time.time() - 1))
    sweep(database, storage, now=time.time())
    assert storage.keys("") == []


@pytest.mark.parametrize("fault", OUTAGES, ids=["503", "500", "dropped", "silent"])
def test_an_outage_is_said_and_loses_nothing(
    client: TestClient,
    database: Database,
    storage: Storage,
    faulty_s3: FaultyS3,
    tenant: Tenant,
    uploader: Uploader,
    fault: Fault,
    capsys: pytest.CaptureFixture[str],
) -> None:
    content = dataset(50)
    file = send(client, tenant, content).json()
    upload_id = uploader.begin(len(content))
    parts = [uploader.part(upload_id, piece) for piece in cut(content, 100)]
    before, stored = count(database), storage.keys("")

    faulty_s3.fail(fault)
    answers = [
        send(client, tenant, content),
        uploader.send(upload_id, b"x"),
        uploader.complete(upload_id, parts),
        client.get(f"/files/{file['id']}/content", headers=tenant.headers),
        client.post(
            "/fine_tuning/validate",
            json={"training_file": file["id"]},
            headers=tenant.headers,
        ),
    ]
    for answer in answers:
        assert error(answer, 503)["code"] == "storage_unavailable"
        assert answer.headers["retry-after"] == "5"
    ready = client.get("http://testserver/readyz")
    assert (ready.status_code, ready.json()["error"]["code"]) == (503, "not_ready")
    said = "".join(capsys.readouterr())
    assert "storage_failed" in said
    assert s3.ACCESS_KEY not in said
    assert s3.SECRET_KEY not in said

    faulty_s3.heal()
    assert (count(database), storage.keys("")) == (before, stored)
    answer = uploader.complete(upload_id, parts, md5=hashlib.md5(content).hexdigest())
    assert uploader.content(answer.json()["file"]["id"]) == content
    assert client.get(f"/files/{file['id']}/content", headers=tenant.headers).content == content
    assert client.get("http://testserver/readyz").status_code == 200


def test_a_delete_during_an_outage_is_finished_by_the_sweep(
    client: TestClient, database: Database, storage: Storage, faulty_s3: FaultyS3, tenant: Tenant
) -> None:
    file_id = send(client, tenant, dataset(10)).json()["id"]
    faulty_s3.fail(SLOW_DOWN)
    answer = client.delete(f"/files/{file_id}", headers=tenant.headers)
    assert error(answer, 503)["code"] == "storage_unavailable"
    faulty_s3.heal()
    assert client.get(f"/files/{file_id}/content", headers=tenant.headers).status_code == 404
    assert storage.keys("") == [f"files/{file_id}"]
    sweep(database, storage, now=time.time() + 2 * 3600)
    assert storage.keys("") == []


def test_no_room_is_said_in_one_shape(
    client: TestClient, database: Database, storage: Storage, faulty_s3: FaultyS3, tenant: Tenant
) -> None:
    faulty_s3.fail(Fault(507, "InsufficientStorage"), method="PUT")
    assert error(send(client, tenant, dataset(10)), 507)["code"] == "storage_full"
    assert (count(database)["files"], storage.keys("")) == (0, [])


def test_rotten_bytes_are_not_served(client: TestClient, storage: Storage, tenant: Tenant) -> None:
    content = dataset(10)
    file_id = send(client, tenant, content).json()["id"]
    storage.put(f"files/{file_id}", dataset(10, tag="other"))
    answer = client.post(
        "/fine_tuning/validate",
        json={"training_file": file_id},
        headers=tenant.headers,
    )
    assert error(answer, 500)["code"] == "internal_error", json.dumps(answer.json())
    # A real server cuts the connection here: the client sees fewer bytes than it was promised.
    with pytest.raises(RuntimeError, match="response already started"):
        client.get(f"/files/{file_id}/content", headers=tenant.headers)
