"""Uploads in parts over HTTP: every field and bound, in any order, after a crash, when it is over."""

from __future__ import annotations

import hashlib
import itertools
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sqlalchemy import func, select, update

from service.db import Database
from service.models import File, Upload, UploadPart
from service.settings import Settings
from service.storage import Storage
from service.uploads import completion
from service.uploads import service as uploads_service
from tests.builders import Tenant, dataset, make_part, make_upload
from tests.service.files.test_upload import refused

sqlite_only = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)

REQUEST = {"bytes": 0, "filename": "train.jsonl", "mime_type": "application/jsonl", "purpose": "fine-tune"}


class Uploader:
    """A client that knows the routes."""

    def __init__(self, client: TestClient, tenant: Tenant) -> None:
        self._client = client
        self._headers = tenant.headers

    def create(self, num_bytes: int = 0, **fields: Any) -> httpx.Response:
        body = {**REQUEST, "bytes": num_bytes, **fields}
        return self._client.post("/uploads", json=body, headers=self._headers)

    def begin(self, num_bytes: int, **fields: Any) -> str:
        answer = self.create(num_bytes, **fields)
        assert answer.status_code == 200, answer.text
        upload_id: str = answer.json()["id"]
        return upload_id

    def send(self, upload_id: str, data: bytes, **headers: str) -> httpx.Response:
        return self._client.post(
            f"/uploads/{upload_id}/parts", files={"data": data}, headers={**self._headers, **headers}
        )

    def part(self, upload_id: str, data: bytes) -> str:
        answer = self.send(upload_id, data)
        assert answer.status_code == 200, answer.text
        part_id: str = answer.json()["id"]
        return part_id

    def complete(self, upload_id: str, part_ids: list[str], **fields: Any) -> httpx.Response:
        return self._client.post(
            f"/uploads/{upload_id}/complete", json={"part_ids": part_ids, **fields}, headers=self._headers
        )

    def cancel(self, upload_id: str) -> httpx.Response:
        return self._client.post(f"/uploads/{upload_id}/cancel", headers=self._headers)

    def get(self, upload_id: str) -> dict[str, Any]:
        answer = self._client.get(f"/uploads/{upload_id}", headers=self._headers)
        assert answer.status_code == 200, answer.text
        body: dict[str, Any] = answer.json()
        return body

    def content(self, file_id: str) -> bytes:
        return self._client.get(f"/files/{file_id}/content", headers=self._headers).content


@pytest.fixture
def uploader(client: TestClient, tenant: Tenant) -> Uploader:
    return Uploader(client, tenant)


def num_rows(database: Database, table: Any) -> int:
    with database.snapshot() as session:
        return session.scalar(select(func.count()).select_from(table)) or 0


def cut(content: bytes, *edges: int) -> list[bytes]:
    bounds = [0, *edges, len(content)]
    return [content[start:end] for start, end in itertools.pairwise(bounds)]


def test_parts_become_a_file(uploader: Uploader, database: Database, storage: Storage) -> None:
    content = dataset(40)
    begun = uploader.create(len(content)).json()
    upload_id = begun["id"]
    assert upload_id.startswith("upload_")
    assert (begun["object"], begun["status"], begun["file"]) == ("upload", "pending", None)
    assert (begun["bytes"], begun["purpose"]) == (len(content), "fine-tune")
    assert (begun["filename"], begun["mime_type"]) == ("train.jsonl", "application/jsonl")
    assert begun["expires_at"] == begun["created_at"] + 3600

    pieces = cut(content, 7, 500)
    sent = [uploader.send(upload_id, piece).json() for piece in reversed(pieces)][::-1]
    for part, piece in zip(sent, pieces, strict=True):
        assert (part["object"], part["upload_id"], part["bytes"]) == ("upload.part", upload_id, len(piece))
        assert part["sha256"] == hashlib.sha256(piece).hexdigest()
    listed = uploader.get(upload_id)
    assert listed["parts"] == sent[::-1]  # in the order in which they came
    assert {name: listed[name] for name in begun} == begun

    answer = uploader.complete(
        upload_id, [part["id"] for part in sent], md5=hashlib.md5(content).hexdigest().upper()
    )
    done = answer.json()
    assert (answer.status_code, done["id"], done["status"]) == (200, upload_id, "completed")
    file = done["file"]
    assert (file["object"], file["status"], file["filename"]) == ("file", "processed", "train.jsonl")
    assert (file["bytes"], file["num_examples"]) == (len(content), 40)
    assert file["sha256"] == hashlib.sha256(content).hexdigest()
    assert uploader.content(file["id"]) == content
    assert uploader.get(upload_id) == {**done, "parts": []}
    assert storage.keys("") == [f"files/{file['id']}"]
    assert num_rows(database, UploadPart) == 0


@sqlite_only
@hypothesis_settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_cutting_and_any_order_of_sending(uploader: Uploader, data: st.DataObject) -> None:
    content = dataset(data.draw(st.integers(10, 40), label="examples"))
    edges = sorted(data.draw(st.lists(st.integers(0, len(content)), max_size=8), label="edges"))
    pieces = cut(content, *edges)
    order = data.draw(st.permutations(range(len(pieces))), label="order")
    again = data.draw(st.lists(st.sampled_from(order), max_size=3), label="sent again")
    upload_id = uploader.begin(len(content))
    part_ids = {i: uploader.part(upload_id, pieces[i]) for i in order}
    part_ids |= {i: uploader.part(upload_id, pieces[i]) for i in again}
    named = [part_ids[i] for i in range(len(pieces))]
    swapped = data.draw(st.permutations(named), label="named")
    whole = b"".join(pieces[named.index(part_id)] for part_id in swapped)
    answer = uploader.complete(upload_id, swapped, md5=hashlib.md5(content).hexdigest())
    if whole == content:
        assert uploader.content(answer.json()["file"]["id"]) == content
    else:
        assert refused(answer)["code"] == "md5_mismatch"
        answer = uploader.complete(upload_id, named, md5=hashlib.md5(content).hexdigest())
        assert uploader.content(answer.json()["file"]["id"]) == content


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


def test_wrong_parts_are_named_and_nothing_is_lost(
    uploader: Uploader, database: Database, storage: Storage
) -> None:
    content = dataset(20)
    pieces = cut(content, 300)
    upload_id = uploader.begin(len(content))
    first, second = (uploader.part(upload_id, piece) for piece in pieces)
    elsewhere = uploader.part(uploader.begin(len(pieces[1])), pieces[1])
    stored = storage.keys("")
    for part_ids, code, words in (
        ([first, elsewhere], "invalid_part_ids", elsewhere),
        ([first, "part_nothing"], "invalid_part_ids", "part_nothing"),
        ([first, first], "invalid_part_ids", "twice"),
        ([first], "size_mismatch", f"bytes={len(content)}"),
        ([], "size_mismatch", "0 bytes"),
    ):
        error = refused(uploader.complete(upload_id, part_ids))
        assert (error["param"], error["code"]) == ("part_ids", code)
        assert words in error["message"]
    error = refused(uploader.complete(upload_id, [first, second], md5="0" * 32))
    assert (error["param"], error["code"]) == ("md5", "md5_mismatch")
    error = refused(uploader.complete(upload_id, [first, second], md5="abc"))
    assert (error["param"], error["code"]) == ("md5", "invalid_value")
    error = refused(uploader.complete(upload_id, [second, first]))
    assert (error["param"], error["code"]) == ("part_ids", "invalid_training_file")
    assert storage.keys("") == stored
    assert num_rows(database, File) == 0
    assert uploader.get(upload_id)["status"] == "pending"
    assert uploader.complete(upload_id, [first, second]).json()["status"] == "completed"


def test_a_bad_dataset_is_refused_by_line_and_can_be_put_right(
    uploader: Uploader, database: Database, storage: Storage
) -> None:
    good, bad = dataset(20), b'{"messages": []}\n'
    upload_id = uploader.begin(len(good) + len(bad))
    first, last = uploader.part(upload_id, good), uploader.part(upload_id, bad)
    error = refused(uploader.complete(upload_id, [first, last]))
    assert (error["code"], error["param"]) == ("invalid_training_file", "part_ids")
    assert {issue["line"] for issue in error["issues"]} == {21}
    assert num_rows(database, File) == 0
    assert len(storage.keys("")) == 2
    repaired = uploader.part(upload_id, b"\n" * len(bad))
    assert uploader.complete(upload_id, [first, repaired]).json()["file"]["num_examples"] == 20


def test_completing_again_gives_the_same_file(uploader: Uploader, database: Database) -> None:
    content = dataset(20)
    upload_id = uploader.begin(len(content))
    part_ids = [uploader.part(upload_id, piece) for piece in cut(content, 300)]
    first = uploader.complete(upload_id, part_ids)
    md5 = hashlib.md5(content).hexdigest()
    assert uploader.complete(upload_id, part_ids).json() == first.json()
    assert uploader.complete(upload_id, part_ids, md5=md5).json() == first.json()
    assert refused(uploader.complete(upload_id, part_ids, md5="0" * 32))["code"] == "md5_mismatch"
    error = refused(uploader.complete(upload_id, part_ids[::-1]))
    assert (error["param"], error["code"]) == ("part_ids", "upload_already_ended")
    assert num_rows(database, File) == 1


def test_two_completions_at_once_make_one_file(
    uploader: Uploader, database: Database, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = dataset(20)
    upload_id = uploader.begin(len(content))
    part_ids = [uploader.part(upload_id, content)]
    both = threading.Barrier(2)
    new_key = completion.file_key

    def key_when_both_are_here(file_id: str) -> str:
        both.wait(10)
        return new_key(file_id)

    monkeypatch.setattr(completion, "file_key", key_when_both_are_here)
    with ThreadPoolExecutor(2) as threads:
        answers = list(threads.map(lambda _: uploader.complete(upload_id, part_ids), range(2)))
    assert [answer.status_code for answer in answers] == [200, 200], [answer.text for answer in answers]
    assert answers[0].json() == answers[1].json()
    assert num_rows(database, File) == 1
    assert storage.keys("") == [f"files/{answers[0].json()['file']['id']}"]


@pytest.mark.parametrize("moment", ["before reading", "before the commit"])
def test_cancelling_while_it_is_completed(
    uploader: Uploader,
    database: Database,
    storage: Storage,
    monkeypatch: pytest.MonkeyPatch,
    moment: str,
) -> None:
    upload_id = uploader.begin(len(dataset(20)))
    part_ids = [uploader.part(upload_id, dataset(20))]
    put = Storage.put

    def cancelled_meanwhile(self: Storage, key: str, content: Any) -> None:
        if moment == "before reading":
            assert uploader.cancel(upload_id).status_code == 200
        put(self, key, content)
        if moment == "before the commit":
            assert uploader.cancel(upload_id).status_code == 200

    monkeypatch.setattr(Storage, "put", cancelled_meanwhile)
    error = refused(uploader.complete(upload_id, part_ids))
    assert error["code"] == "upload_already_ended"
    assert storage.keys("") == []
    assert num_rows(database, File) == 0


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


def test_a_completion_that_began_in_time_ends(
    uploader: Uploader, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload_id = uploader.begin(len(dataset(20)))
    part_ids = [uploader.part(upload_id, dataset(20))]
    put = Storage.put

    def slow(self: Storage, key: str, content: Any) -> None:
        put(self, key, content)
        with database.transaction() as session:
            session.execute(update(Upload).values(expires_at=time.time()))

    monkeypatch.setattr(Storage, "put", slow)
    assert uploader.complete(upload_id, part_ids).json()["status"] == "completed"


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


def test_the_file_expires_as_asked(uploader: Uploader, client: TestClient, tenant: Tenant) -> None:
    content = dataset(20)
    upload_id = uploader.begin(len(content), expires_after={"anchor": "created_at", "seconds": 3600})
    file = uploader.complete(upload_id, [uploader.part(upload_id, content)]).json()["file"]
    assert file["expires_at"] - file["created_at"] in (3600, 3601)  # each rounded down
    client.delete(f"/files/{file['id']}", headers=tenant.headers)
    assert uploader.get(upload_id)["file"] is None


@sqlite_only
def test_other_data_is_only_stored(uploader: Uploader) -> None:
    for content in (b"\x00\xff" * 1000, b""):
        upload_id = uploader.begin(len(content), purpose="user_data", mime_type="application/octet-stream")
        part_ids = [uploader.part(upload_id, content)] if content else []
        file = uploader.complete(upload_id, part_ids).json()["file"]
        assert (file["purpose"], file["num_examples"], file["status"]) == ("user_data", None, "processed")
        assert file["sha256"] == hashlib.sha256(content).hexdigest()
        assert uploader.content(file["id"]) == content


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
