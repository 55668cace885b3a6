"""From parts to a file: however it was cut and sent, checked whole, made once, and never half."""

from __future__ import annotations

import hashlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sqlalchemy import update

from service.db import Database
from service.models import File, Upload, UploadPart
from service.storage import Storage
from service.uploads import completion
from tests.builders import Tenant, dataset
from tests.service.files.test_upload import refused
from tests.service.uploads.uploader import Uploader, cut, num_rows

sqlite_only = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


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
