"""Bytes under keys, in a folder and in a bucket: whole or not at all, and only below their place."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from obstore.exceptions import GenericError

from service.storage import (
    CHUNK_BYTES,
    Storage,
    StorageFullError,
    StorageUnavailableError,
    adapter_key,
    file_key,
    part_key,
    private_prefix,
    storage_from_url,
)
from service.storage.s3_url import s3_place
from tests import s3


def pieces(num: int, *, fail_at: int | None = None) -> Iterator[bytes]:
    for i in range(num):
        if i == fail_at:
            raise KeyError("the client went away")
        yield bytes([i % 256]) * 65536


@pytest.fixture(params=["file", "s3"])
def storage_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return request.getfixturevalue("s3_url") if request.param == "s3" else f"file://{tmp_path}/storage"


file_only = pytest.mark.parametrize("storage_url", ["file"], indirect=True)


def everything(storage_url: str) -> list[str]:
    """Also what is not whole yet."""
    if storage_url.startswith("s3:"):
        place = s3_place(storage_url)
        assert place.endpoint is not None
        keys = s3.everything_in(place.endpoint, place.bucket)
        keys += s3.unfinished_uploads(place.endpoint, place.bucket)
        return sorted(key.removeprefix(f"{place.prefix}/") for key in keys)
    root = Path(storage_url.removeprefix("file://"))
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def test_a_stream_comes_back_equal_and_in_bounded_chunks(storage: Storage) -> None:
    storage.put("files/a", pieces(200))
    chunks = list(storage.stream("files/a"))
    assert b"".join(chunks) == b"".join(pieces(200))
    assert len(chunks) > 1
    assert max(map(len, chunks)) < 4 * CHUNK_BYTES


@pytest.mark.parametrize(
    ("start", "num_bytes"),
    [(0, 1), (5, 3_000_000), (13_107_199, 1), (0, 13_107_200), (7, 0), (13_107_200, 0)],
)
def test_a_range_comes_back_in_bounded_chunks(storage: Storage, start: int, num_bytes: int) -> None:
    storage.put("files/a", pieces(200))
    chunks = list(storage.stream_range("files/a", start=start, num_bytes=num_bytes))
    assert b"".join(chunks) == b"".join(pieces(200))[start : start + num_bytes]
    assert max(map(len, chunks), default=0) < 4 * CHUNK_BYTES


@pytest.mark.parametrize(("start", "num_bytes"), [(0, 5), (4, 1), (5, 0), (-1, 1), (2, -1), (2**70, 1)])
def test_a_range_that_is_not_there_is_no_shorter_one(storage: Storage, start: int, num_bytes: int) -> None:
    """Whoever asked knows how long the object was; that it is shorter now must not go unnoticed."""
    storage.put("files/a", b"abcd")
    with pytest.raises(ValueError, match="files/a has 4 bytes"):
        storage.stream_range("files/a", start=start, num_bytes=num_bytes)


@pytest.mark.parametrize("fail_at", [0, 1, 150])
def test_a_put_that_fails_leaves_nothing(storage: Storage, storage_url: str, fail_at: int) -> None:
    with pytest.raises(KeyError, match="went away"):
        storage.put("files/a", pieces(200, fail_at=fail_at))
    assert everything(storage_url) == []


def test_a_put_that_fails_leaves_what_was_there(storage: Storage, storage_url: str) -> None:
    storage.put("files/a", b"old")
    with pytest.raises(KeyError):
        storage.put("files/a", pieces(200, fail_at=150))
    assert b"".join(storage.stream("files/a")) == b"old"
    assert everything(storage_url) == ["files/a"]


def test_missing_objects_are_named_at_once(storage: Storage, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        storage.stream("files/none")
    for num_bytes in (0, 1):
        with pytest.raises(FileNotFoundError):
            storage.stream_range("files/none", start=0, num_bytes=num_bytes)
    with pytest.raises(FileNotFoundError):
        storage.modified_at("files/none")
    with pytest.raises(FileNotFoundError, match="private/job"):
        storage.download_folder("private/job", tmp_path)


def test_deleting_is_repeatable(storage: Storage) -> None:
    storage.put("files/a", b"x")
    storage.delete("files/a")
    storage.delete("files/a")
    assert storage.keys("files") == []


def test_a_prefix_is_a_folder_not_the_start_of_a_name(storage: Storage) -> None:
    for key in ("private/ftjob-1/x", "private/ftjob-1/y/z", "private/ftjob-12/x"):
        storage.put(key, b"")
    assert storage.keys("private/ftjob-1") == ["private/ftjob-1/x", "private/ftjob-1/y/z"]
    storage.delete_prefix("private/ftjob-1")
    assert storage.keys("private") == ["private/ftjob-12/x"]


def test_folders_go_up_and_come_down_equal(storage: Storage, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "deep").mkdir(parents=True)
    (source / "a.txt").write_bytes(b"a")
    (source / "deep" / "b c.bin").write_bytes(b"\0" * 100_000)
    storage.upload_folder("private/job/1", source)
    storage.download_folder("private/job/1", tmp_path / "copy")
    assert (tmp_path / "copy" / "a.txt").read_bytes() == b"a"
    assert (tmp_path / "copy" / "deep" / "b c.bin").read_bytes() == b"\0" * 100_000


def test_a_key_cannot_leave_the_folder(storage: Storage, storage_url: str) -> None:
    with pytest.raises(ValueError, match=r"\.\."):
        storage.put("files/../../outside", b"x")
    assert everything(storage_url) == []


def test_probe_leaves_nothing(storage: Storage, storage_url: str) -> None:
    storage.probe()
    assert everything(storage_url) == []


def test_private_weights_files_and_adapters_share_no_prefix() -> None:
    keys = (file_key("x"), private_prefix("x"), adapter_key("x", 1), part_key("x", "y"))
    assert {key.split("/")[0] for key in keys} == {"files", "private", "adapters", "uploads"}


def test_objects_are_read_as_one_while_another_is_written(storage: Storage) -> None:
    keys = [f"uploads/u/{i}" for i in range(4)]
    for i, key in enumerate(keys):
        storage.put(key, pieces(20 * i))
    storage.put("files/whole", storage.read_ahead(keys))
    expected = b"".join(b"".join(pieces(20 * i)) for i in range(4))
    assert b"".join(storage.stream("files/whole")) == expected


def test_an_object_that_is_gone_ends_the_reading(storage: Storage, storage_url: str) -> None:
    storage.put("uploads/u/0", pieces(50))
    with pytest.raises(FileNotFoundError):
        storage.put("files/whole", storage.read_ahead(["uploads/u/0", "uploads/u/1"]))
    assert everything(storage_url) == ["uploads/u/0"]
    assert not any(thread.name.startswith("read-ahead") for thread in threading.enumerate())


def test_reading_ahead_may_stop_early(storage: Storage) -> None:
    storage.put("uploads/u/0", pieces(200))
    reading = storage.read_ahead(["uploads/u/0"])
    assert next(reading)
    reading.close()
    assert not any(thread.name.startswith("read-ahead") for thread in threading.enumerate())


@file_only
def test_what_a_killed_process_left_is_found_by_age(storage: Storage, storage_url: str) -> None:
    process = multiprocessing.get_context("spawn").Process(target=_killed_while_putting, args=(storage_url,))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    storage.put("files/whole", b"x")
    assert everything(storage_url) == ["files/half#1", "files/whole"]
    assert storage.keys("") == ["files/whole"]
    assert storage.delete_unfinished(before=time.time() - 60) == 0
    assert storage.delete_unfinished(before=time.time() + 60) == 1
    assert everything(storage_url) == ["files/whole"]


def _killed_while_putting(storage_url: str) -> None:
    def body() -> Iterator[bytes]:
        yield from pieces(3)
        os.kill(os.getpid(), signal.SIGKILL)

    storage_from_url(storage_url).put("files/half", body())


@file_only
@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ("Unable to copy data to file: No space left on device (os error 28)", StorageFullError),
        ("Disk quota exceeded (os error 122)", StorageFullError),
        ("<Code>XMinioStorageFull</Code>", StorageFullError),
        ("Permission denied (os error 13)", StorageUnavailableError),
        ("error sending request (os error 281)", StorageUnavailableError),
    ],
)
def test_failures_of_the_store_have_two_names(
    storage: Storage, monkeypatch: pytest.MonkeyPatch, words: str, kind: type[Exception]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise GenericError(words)

    monkeypatch.setattr("service.storage.local.obstore.put", fail)
    with pytest.raises(StorageUnavailableError) as raised:
        storage.put("files/a", b"x")
    assert type(raised.value) is kind
    assert words not in str(raised.value)


@pytest.mark.parametrize("url", ["ftp://bucket", "/no/scheme", "file://host/path", "file:relative"])
def test_unsupported_urls_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match="STORAGE_URL"):
        storage_from_url(url)


def test_the_folder_is_private(tmp_path: Path) -> None:
    storage_from_url(f"file://{tmp_path}/with%20space")
    assert (tmp_path / "with space").stat().st_mode & 0o777 == 0o700
