"""Uploads in parts over HTTP: every field and bound, after a crash, and when it is over."""

from __future__ import annotations

import hashlib
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import update

from service.db import Database
from service.models import Upload, UploadPart
from service.settings import Settings
from service.storage import Storage
from service.uploads import service as uploads_service
from tests.builders import Tenant, dataset, make_part, make_upload
from tests.service.files.test_upload import refused
from tests.service.uploads.uploader import REQUEST, Uploader, cut, num_rows

sqlite_only = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


def test_parts_at_once(uploader: Uploader) -> None:
    content = dataset(200)
    edges = list(range(500, len(content), 500))
    upload_id = uploader.begin(len(content))
    with ThreadPoolExecutor(8) as threads:
        part_ids = list(threads.map(lambda piece: uploader.part(upload_id, piece), cut(content, *edges)))
    answer = uploader.complete(upload_id, part_ids)
    assert uploader.content(answer.json()["file"]["id"]) == content


def test_a_client_that_lost_its_place_goes_on(uploader: Uploader) -> None:
    """It knows its file and the upload's id, and finds by hash what has come."""
    content = dataset(40)
    pieces = cut(content, 400, 800)
    upload_id = uploader.begin(len(content))
    for piece in pieces[:2]:
        uploader.part(upload_id, piece)
    have = {part["sha256"]: part["id"] for part in uploader.get(upload_id)["parts"]}
    assert len(have) == 2
    named = [
        have.get(hashlib.sha256(piece).hexdigest()) or uploader.part(upload_id, piece) for piece in pieces
    ]
    assert uploader.complete(upload_id, named).json()["file"]["bytes"] == len(content)


@sqlite_only
@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"bytes": -1}, "bytes", "invalid_value"),
        ({"bytes": 8 * 1024**3 + 1}, "bytes", "invalid_value"),
        ({"bytes": 1.5}, "bytes", "invalid_value"),
        ({"bytes": True}, "bytes", "invalid_value"),
        ({"filename": ""}, "filename", "invalid_value"),
        ({"filename": "x" * 1025}, "filename", "invalid_value"),
        ({"filename": "a\0b"}, "filename", "invalid_value"),
        ({"mime_type": ""}, "mime_type", "invalid_value"),
        ({"mime_type": "x" * 256}, "mime_type", "invalid_value"),
        ({"purpose": "batch"}, "purpose", "unsupported_purpose"),
        ({"purpose": "evals"}, "purpose", "unsupported_purpose"),
        ({"purpose": "fun"}, "purpose", "invalid_value"),
        ({"expires_after": {"anchor": "created_at"}}, "expires_after.seconds", "missing_required_parameter"),
        ({"expires_after": {"seconds": 3600}}, "expires_after.anchor", "missing_required_parameter"),
        ({"expires_after": {"anchor": "now", "seconds": 3600}}, "expires_after.anchor", "invalid_value"),
        (
            {"expires_after": {"anchor": "created_at", "seconds": 3599}},
            "expires_after.seconds",
            "invalid_value",
        ),
        (
            {"expires_after": {"anchor": "created_at", "seconds": 2592001}},
            "expires_after.seconds",
            "invalid_value",
        ),
        ({"size": 1}, "size", "unknown_parameter"),
    ],
)
def test_bad_fields(
    uploader: Uploader, database: Database, fields: dict[str, Any], param: str, code: str
) -> None:
    error = refused(uploader.create(**{"num_bytes": 1, **fields}))
    assert (error["param"], error["code"]) == (param, code)
    assert num_rows(database, Upload) == 0


@sqlite_only
@pytest.mark.parametrize("name", REQUEST)
def test_missing_fields(client: TestClient, tenant: Tenant, name: str) -> None:
    body = {key: value for key, value in REQUEST.items() if key != name}
    error = refused(client.post("/uploads", json=body, headers=tenant.headers))
    assert (error["param"], error["code"]) == (name, "missing_required_parameter")


@sqlite_only
def test_the_largest_fields_are_taken(uploader: Uploader) -> None:
    body = uploader.create(
        8 * 1024**3,
        mime_type="x" * 255,
        filename="../" + "x" * 1000,
        expires_after={"anchor": "created_at", "seconds": 2592000},
    ).json()
    assert (body["bytes"], body["filename"]) == (8 * 1024**3, "x" * 255)
    for optional in ({"expires_after": None}, {"purpose": "user_data"}):
        assert uploader.create(1, **optional).status_code == 200


def test_a_cancelled_upload_takes_nothing_more(
    uploader: Uploader, database: Database, storage: Storage
) -> None:
    upload_id = uploader.begin(100)
    part_id = uploader.part(upload_id, b"x" * 100)
    answer = uploader.cancel(upload_id)
    assert (answer.status_code, answer.json()["status"], answer.json()["file"]) == (200, "cancelled", None)
    assert uploader.cancel(upload_id).json() == answer.json()
    for refusal in (uploader.send(upload_id, b"x"), uploader.complete(upload_id, [part_id])):
        error = refused(refusal)
        assert (error["param"], error["code"]) == ("upload_id", "upload_already_ended")
    assert uploader.get(upload_id)["parts"] == []
    assert storage.keys("") == []
    assert num_rows(database, UploadPart) == 0


def test_a_completed_upload_cannot_be_cancelled(uploader: Uploader) -> None:
    upload_id = uploader.begin(len(dataset(20)))
    uploader.complete(upload_id, [uploader.part(upload_id, dataset(20))])
    for refusal in (uploader.cancel(upload_id), uploader.send(upload_id, b"x")):
        assert refused(refusal)["code"] == "upload_already_ended"


def test_an_expired_upload(uploader: Uploader, database: Database, storage: Storage, tenant: Tenant) -> None:
    upload_id = uploader.begin(100)
    part_id = uploader.part(upload_id, b"x" * 100)
    with database.transaction() as session:
        session.execute(update(Upload).values(expires_at=time.time() - 1))
    assert uploader.get(upload_id)["status"] == "expired"
    for refusal in (
        uploader.send(upload_id, b"x"),
        uploader.complete(upload_id, [part_id]),
        uploader.cancel(upload_id),
    ):
        assert refused(refusal)["code"] == "upload_expired"
    # Only after a while, for a completion that began in time.
    assert uploads_service.delete_expired(database, storage, now=time.time()) == 0
    later = time.time() + uploads_service.EXPIRY_GRACE_SECONDS + 1
    assert uploads_service.delete_expired(database, storage, now=later) == 1
    assert uploads_service.delete_expired(database, storage, now=later) == 0
    assert (uploader.get(upload_id)["status"], uploader.get(upload_id)["parts"]) == ("expired", [])
    assert storage.keys("") == []


def test_a_part_that_comes_while_the_upload_ends_leaves_nothing(
    uploader: Uploader, database: Database, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload_id = uploader.begin(100)
    put = Storage.put

    def cancelled_meanwhile(self: Storage, key: str, content: Any) -> None:
        put(self, key, content)
        assert uploader.cancel(upload_id).status_code == 200

    monkeypatch.setattr(Storage, "put", cancelled_meanwhile)
    assert refused(uploader.send(upload_id, b"x"))["code"] == "upload_already_ended"
    assert storage.keys("") == []


@sqlite_only
@pytest.mark.parametrize(
    ("fields", "param", "code", "status"),
    [
        ({"files": {"file": b"x"}}, "file", "unknown_parameter", 400),
        ({"files": {"data": b"x"}, "data": {"md5": "x"}}, "md5", "unknown_parameter", 400),
        ({"files": {"x": (None, b"")}}, "x", "unknown_parameter", 400),
        ({"content": b"x"}, None, "unsupported_content_type", 415),
        ({"json": {"data": "x"}}, None, "unsupported_content_type", 415),
    ],
)
def test_bad_parts(
    client: TestClient,
    uploader: Uploader,
    storage: Storage,
    tenant: Tenant,
    fields: dict[str, Any],
    param: str | None,
    code: str,
    status: int,
) -> None:
    upload_id = uploader.begin(10)
    error = refused(client.post(f"/uploads/{upload_id}/parts", headers=tenant.headers, **fields), status)
    assert (error["param"], error["code"]) == (param, code)
    assert storage.keys("") == []


@sqlite_only
def test_a_part_without_data(client: TestClient, uploader: Uploader, tenant: Tenant) -> None:
    headers = {**tenant.headers, "content-type": "multipart/form-data; boundary=b"}
    path = f"/uploads/{uploader.begin(10)}/parts"
    error = refused(client.post(path, content=b"--b--\r\n", headers=headers))
    assert (error["param"], error["code"]) == ("data", "missing_required_parameter")
    headers["content-encoding"] = "gzip"
    error = refused(client.post(path, content=b"--b--\r\n", headers=headers), 415)
    assert error["code"] == "unsupported_content_encoding"


class TestLimits:
    @pytest.fixture
    def settings(self, database_url: str, storage_url: str) -> Settings:
        return Settings(
            database_url=database_url,
            storage_url=storage_url,
            max_upload_bytes=400_000,
            max_part_bytes=200_000,
            upload_ttl_seconds=7,
        )

    @sqlite_only
    def test_the_limits_are_the_settings(
        self, uploader: Uploader, storage: Storage, database: Database
    ) -> None:
        assert "400000 bytes" in refused(uploader.create(400_001))["message"]
        upload = uploader.create(400_000).json()
        assert upload["expires_at"] - upload["created_at"] in (7, 8)
        assert uploader.send(upload["id"], b"x" * 200_000).status_code == 200
        # By its bytes while they come, and by its announced length.
        for num_bytes in (200_001, 600_000):
            error = refused(uploader.send(upload["id"], b"x" * num_bytes), 413)
            assert (error["param"], error["code"]) == ("data", "part_too_large")
        assert num_rows(database, UploadPart) == len(storage.keys("")) == 1

    @sqlite_only
    def test_parts_sent_again_do_not_fill_the_disk(self, uploader: Uploader, storage: Storage) -> None:
        upload_id = uploader.begin(100_000)
        for _ in range(4):
            assert uploader.send(upload_id, b"x" * 100_000).status_code == 200
        error = refused(uploader.send(upload_id, b"x"))
        assert (error["param"], error["code"]) == ("data", "too_many_parts")
        assert len(storage.keys("")) == 4

    def test_nor_do_parts_without_end(
        self,
        uploader: Uploader,
        database: Database,
        tenant: Tenant,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(uploads_service, "MAX_PARTS", 3)
        with database.transaction() as session:
            upload = make_upload(session, tenant.project_id)
            for _ in range(3):
                make_part(session, upload, bytes=0)
        assert refused(uploader.send(upload.id, b""))["code"] == "too_many_parts"
