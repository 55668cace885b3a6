"""A bucket: what it costs in requests and memory, and what comes of a store that fails."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from service.storage import (
    BucketMissingError,
    Storage,
    StorageCorruptError,
    StorageFullError,
    StorageRefusedError,
    StorageUnavailableError,
    storage_from_url,
)
from service.storage.s3 import PART_BYTES
from service.storage.s3_url import s3_place
from service.storage.sums import SUMS_NAME
from tests import s3
from tests.s3 import DROP, SLOW_DOWN, Fault, FaultyS3
from tests.service.test_storage import pieces
from tests.waiting import wait_until

LARGE = 400  # pieces: three parts and a bit


@pytest.fixture
def storage(faulty_s3_url: str) -> Storage:
    return storage_from_url(faulty_s3_url)


def methods(faulty_s3: FaultyS3) -> list[str]:
    return [method for method, _ in faulty_s3.requests]


def whole(storage: Storage, key: str) -> bytes:
    return b"".join(storage.stream(key))


@pytest.mark.parametrize("kind", ["bytes", "iterator", "file"])
def test_a_small_object_is_one_request(
    storage: Storage, faulty_s3: FaultyS3, tmp_path: Path, kind: str
) -> None:
    (tmp_path / "x").write_bytes(b"x" * 1000)
    content = {"bytes": b"x" * 1000, "iterator": iter([b"x" * 400, b"x" * 600]), "file": tmp_path / "x"}
    storage.put("files/a", content[kind])  # type: ignore[arg-type]
    assert faulty_s3.requests == [("PUT", faulty_s3.requests[0][1])]
    assert whole(storage, "files/a") == b"x" * 1000


@pytest.mark.parametrize("kind", ["bytes", "iterator", "file"])
def test_a_large_object_goes_in_parts(
    storage: Storage, faulty_s3: FaultyS3, tmp_path: Path, kind: str
) -> None:
    expected = b"".join(pieces(LARGE))
    (tmp_path / "x").write_bytes(expected)
    content = {"bytes": expected, "iterator": pieces(LARGE), "file": tmp_path / "x"}
    storage.put("files/a", content[kind])  # type: ignore[arg-type]
    num_parts = -(-len(expected) // PART_BYTES)
    assert sorted(methods(faulty_s3)) == ["POST", "POST", *["PUT"] * num_parts]
    assert whole(storage, "files/a") == expected


def test_nothing_is_seen_before_the_last_part(storage: Storage, faulty_s3_url: str, s3_endpoint: str) -> None:
    """Neither a new object, nor half of a new one in place of the old one."""
    seen: list[bytes] = []
    bucket, other = s3_place(faulty_s3_url).bucket, storage_from_url(faulty_s3_url)
    storage.put("files/a", b"old")

    def watched() -> Iterator[bytes]:
        for i, piece in enumerate(pieces(LARGE)):
            if i == LARGE - 1:
                # Parts go out in the background: the upload may not have begun at once.
                wait_until(lambda: len(s3.unfinished_uploads(s3_endpoint, bucket)) == 1)
            yield piece

    storage.put("files/b", watched())
    seen.append(whole(other, "files/a"))
    assert seen == [b"old"]
    assert len(whole(other, "files/b")) == LARGE * 65536


@pytest.mark.parametrize("fault", [SLOW_DOWN, Fault(500), DROP, Fault(503, "SlowDown", late=True)])
@pytest.mark.parametrize("size", [1, LARGE])
def test_a_store_that_stumbles_is_asked_again(
    storage: Storage, faulty_s3: FaultyS3, fault: Fault, size: int
) -> None:
    faulty_s3.fail(fault, times=3)
    storage.put("files/a", pieces(size))
    faulty_s3.fail(fault, times=2)
    assert whole(storage, "files/a") == b"".join(pieces(size))
    faulty_s3.fail(fault, times=2)
    assert storage.keys("files") == ["files/a"]
    faulty_s3.fail(fault, times=2)
    assert storage.num_bytes("files/a") == size * 65536
    faulty_s3.fail(fault, times=2)
    storage.delete("files/a")
    assert storage.keys("files") == []


DEEDS: dict[str, Callable[[Storage], object]] = {
    "put": lambda storage: storage.put("files/b", b"y"),
    "put large": lambda storage: storage.put("files/b", pieces(LARGE)),
    "stream": lambda storage: storage.stream("files/a"),
    "keys": lambda storage: storage.keys("files"),
    "delete": lambda storage: storage.delete("files/a"),
    "num_bytes": lambda storage: storage.num_bytes("files/a"),
}
AWAY = [
    *((SLOW_DOWN, "503 SlowDown", deed) for deed in DEEDS),
    *((Fault(500), "500 InternalError", deed) for deed in ("put", "stream")),
    *((DROP, "connection lost", deed) for deed in ("put", "stream")),
    *((Fault(seconds=30), "timed out", deed) for deed in ("put", "stream")),
]


@pytest.mark.parametrize(("fault", "reason", "deed"), AWAY)
def test_a_store_that_stays_away_is_given_up(
    storage: Storage, faulty_s3: FaultyS3, fault: Fault, reason: str, deed: str
) -> None:
    storage.put("files/a", b"x")
    faulty_s3.fail(fault)
    began_at = time.monotonic()
    with pytest.raises(StorageUnavailableError) as raised:
        DEEDS[deed](storage)
    assert time.monotonic() - began_at < 12
    # An answer to HEAD has no body to say more.
    assert raised.value.reason == (reason.split(maxsplit=1)[0] if deed == "num_bytes" else reason)
    assert str(raised.value) == f"the storage does not answer ({raised.value.reason})"
    faulty_s3.heal()
    assert "files/b" not in storage.keys("files")


def test_a_part_that_fails_for_good_aborts_the_upload(
    storage: Storage, faulty_s3: FaultyS3, faulty_s3_url: str, s3_endpoint: str
) -> None:
    bucket = s3_place(faulty_s3_url).bucket
    faulty_s3.fail(SLOW_DOWN, method="PUT", path="partNumber=2")
    with pytest.raises(StorageUnavailableError, match="503 SlowDown"):
        storage.put("files/a", pieces(LARGE))
    assert s3.unfinished_uploads(s3_endpoint, bucket) == []
    assert storage.keys("files") == []


def test_an_upload_that_cannot_even_be_aborted_is_swept(
    storage: Storage, faulty_s3: FaultyS3, faulty_s3_url: str, s3_endpoint: str
) -> None:
    place = s3_place(faulty_s3_url)

    def all_but_the_beginning(method: str, path: str) -> Fault | None:
        return None if method == "POST" and path.endswith("?uploads=") else SLOW_DOWN

    faulty_s3.rule = all_but_the_beginning
    with pytest.raises(StorageUnavailableError):
        storage.put("files/a", pieces(LARGE))
    faulty_s3.heal()
    assert s3.unfinished_uploads(s3_endpoint, place.bucket) == ["below/files/a"]
    with s3.s3_client(s3_endpoint) as client:
        elsewhere = client.create_multipart_upload(Bucket=place.bucket, Key="beside/files/a")
    assert storage.delete_unfinished(before=time.time() + 60) == 1
    assert s3.unfinished_uploads(s3_endpoint, place.bucket) == ["beside/files/a"], elsewhere
    faulty_s3.fail(SLOW_DOWN)
    with pytest.raises(StorageUnavailableError, match="503 SlowDown"):
        storage.delete_unfinished(before=time.time())


def test_what_a_killed_process_left_is_swept_by_the_age_of_its_newest_part(
    faulty_s3_url: str, storage: Storage, s3_endpoint: str
) -> None:
    bucket = s3_place(faulty_s3_url).bucket
    process = multiprocessing.get_context("spawn").Process(
        target=_killed_while_putting, args=(faulty_s3_url, s3_endpoint)
    )
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert s3.unfinished_uploads(s3_endpoint, bucket) == ["below/files/half"]
    assert storage.keys("") == []
    assert storage.delete_unfinished(before=time.time() - 60) == 0, "it may still be growing"
    assert storage.delete_unfinished(before=time.time() + 60) == 1
    assert s3.unfinished_uploads(s3_endpoint, bucket) == []


def _killed_while_putting(storage_url: str, endpoint: str) -> None:
    place = s3_place(storage_url)

    def num_stored_parts() -> int:
        with s3.s3_client(endpoint) as client:
            uploads = client.list_multipart_uploads(Bucket=place.bucket).get("Uploads", ())
            return sum(
                len(
                    client.list_parts(Bucket=place.bucket, Key=u["Key"], UploadId=u["UploadId"]).get(
                        "Parts", ()
                    )
                )
                for u in uploads
            )

    def body() -> Iterator[bytes]:
        yield from pieces(LARGE)
        while num_stored_parts() == 0:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGKILL)

    storage_from_url(storage_url).put("files/half", body())


@pytest.mark.slow
def test_memory_does_not_grow_with_the_object(s3_url: str) -> None:
    """In a process of its own, so that only our side is measured."""
    process = multiprocessing.get_context("spawn").Process(target=_up_and_down, args=(s3_url, 2500))
    process.start()
    process.join(120)
    assert process.exitcode == 0


def _up_and_down(storage_url: str, num_pieces: int) -> None:
    def peak_bytes() -> int:
        # Not getrusage: that begins with the peak of the process that started this one.
        line = next(line for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line)
        return int(line.split()[1]) * 1024

    storage = storage_from_url(storage_url)
    storage.put("files/small", pieces(20))
    whole(storage, "files/small")
    before = peak_bytes()
    storage.put("files/large", pieces(num_pieces))
    num_bytes = sum(map(len, storage.stream("files/large")))
    grown = peak_bytes() - before
    assert num_bytes == num_pieces * 65536
    print(f"{num_bytes / 2**20:.0f} MiB up and down took {grown / 2**20:.0f} MiB of memory")
    assert grown < 8 * PART_BYTES, grown


def test_a_connection_that_is_lost_in_the_middle_of_an_object(storage: Storage, faulty_s3: FaultyS3) -> None:
    """The rest is fetched; if that fails too, the reader is told and does not take half for the whole."""
    storage.put("files/a", pieces(LARGE))
    faulty_s3.fail(Fault(body_bytes=5_000_000), method="GET", times=1)
    assert whole(storage, "files/a") == b"".join(pieces(LARGE))
    faults = iter([Fault(body_bytes=5_000_000)])
    faulty_s3.rule = lambda _method, _path: next(faults, DROP)
    with pytest.raises(StorageUnavailableError):
        whole(storage, "files/a")


def test_wrong_bytes_are_not_given_out_whole(storage: Storage, faulty_s3_url: str, s3_endpoint: str) -> None:
    content = b"".join(pieces(40))
    storage.put("files/a", content)
    place = s3_place(faulty_s3_url)
    with s3.s3_client(s3_endpoint) as client:
        client.put_object(Bucket=place.bucket, Key="below/files/a", Body=b"!" + content[1:])
    chunks = storage.stream("files/a", sha256=hashlib.sha256(content).hexdigest())
    given_out: list[bytes] = []
    with pytest.raises(StorageCorruptError, match="files/a is not what was stored"):
        given_out.extend(chunks)
    assert sum(map(len, given_out)) < len(content)


def test_a_rotten_checkpoint_is_refused(
    storage: Storage, faulty_s3_url: str, s3_endpoint: str, tmp_path: Path
) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "optimizer.pt").write_bytes(b"moments")
    storage.upload_folder("private/job/1/train", tmp_path / "state")
    storage.download_folder("private/job/1/train", tmp_path / "good")
    assert [path.name for path in (tmp_path / "good").iterdir()] == ["optimizer.pt"]
    storage.put("private/job/1/train/optimizer.pt", b"moment?")
    with pytest.raises(StorageCorruptError, match=r"optimizer\.pt"):
        storage.download_folder("private/job/1/train", tmp_path / "bad")
    storage.delete("private/job/1/train/optimizer.pt")
    with pytest.raises(FileNotFoundError, match=r"optimizer\.pt"):
        storage.download_folder("private/job/1/train", tmp_path / "gone")
    storage.put(f"private/job/1/train/{SUMS_NAME}", b'{"../../outside": "' + b"a" * 64 + b'"}')
    with pytest.raises(StorageCorruptError):
        storage.download_folder("private/job/1/train", tmp_path / "evil")


def test_what_was_stored_without_sums_is_still_read(storage: Storage, tmp_path: Path) -> None:
    storage.put("private/job/1/train/a", b"x")
    storage.download_folder("private/job/1/train", tmp_path)
    assert (tmp_path / "a").read_bytes() == b"x"


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (Fault(507, "InsufficientStorage"), StorageFullError),
        (Fault(400, "XMinioStorageFull"), StorageFullError),
        (Fault(403, "AccessDenied"), StorageRefusedError),
        (Fault(403, "InvalidAccessKeyId"), StorageRefusedError),
        (Fault(403, "SignatureDoesNotMatch"), StorageRefusedError),
        (Fault(404, "NoSuchBucket"), BucketMissingError),
    ],
)
def test_failures_have_names_and_tell_no_secret(
    storage: Storage, faulty_s3: FaultyS3, fault: Fault, kind: type[Exception]
) -> None:
    faulty_s3.fail(fault)
    for deed in (
        lambda: storage.put("files/a", b"x"),
        lambda: storage.put("files/a", pieces(LARGE)),
        lambda: storage.stream("files/a"),
        lambda: storage.keys("files"),
        lambda: storage.delete("files/a"),
    ):
        with pytest.raises(kind) as raised:
            deed()
        said = "".join(traceback.format_exception(raised.value))
        assert f"{fault.status} {fault.code}" in said
        assert s3.ACCESS_KEY not in said
        assert s3.SECRET_KEY not in said
