"""Bytes under keys, in whatever `obstore` reaches. No JSON, no application logic.

A `put` is atomic: readers see the whole object or none, and one that fails midway leaves nothing.
`service.storage.local` and `service.storage.s3` say what differs between a folder and a bucket.
"""

from __future__ import annotations

import hashlib
import secrets
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, Self

import obstore
from obstore.store import ObjectStore

from service.storage.errors import StorageCorruptError, StorageUnavailableError, named_errors
from service.storage.sums import SUMS_NAME, folder_sums, read_sums, write_sums

if TYPE_CHECKING:
    from obstore import GetResult  # the library's types are not there at run time

CHUNK_BYTES = 1024 * 1024


class Storage(ABC):
    """Every method raises StorageUnavailableError when the store fails, StorageFullError when it is full.

    `sha256`, where given, is what the bytes must have: reading ends with StorageCorruptError if they do
    not, before the last chunk is given out, so that nobody gets a wrong object whole."""

    child_environment: frozenset[str] = frozenset()
    """Variables that a process needs to reach this storage."""

    def __init__(self, store: ObjectStore, reason_of: Callable[[Exception], str]) -> None:
        self._store = store
        self._probe_store = store
        self._reason_of = reason_of

    def put(self, key: str, content: bytes | Path | Iterable[bytes]) -> None:
        """Store `content` whole. An exception raised by the iterable passes through; nothing is kept.

        The iterable may run inside the store's own event loop and cannot read from the storage itself:
        use `read_ahead` for that.
        """
        with ExitStack() as stack:
            source: bytes | BufferedReader | _Source
            if isinstance(content, Path):
                source = stack.enter_context(content.open("rb"))
            else:
                source = content if isinstance(content, bytes) else _Source(content)
            try:
                with self._named_errors():
                    self._put(key, source)
            except StorageUnavailableError:
                if isinstance(source, _Source) and source.error is not None:
                    raise source.error from None
                raise

    @abstractmethod
    def _put(self, key: str, content: bytes | BufferedReader | Iterator[bytes]) -> None:
        """As `put`; the library's errors pass through."""

    @abstractmethod
    def delete_unfinished(self, *, before: float) -> int:
        """Delete what a killed process had not finished writing and nobody has written to since `before`
        (seconds since the epoch); how many."""

    def _named_errors(self, key: str | None = None) -> AbstractContextManager[None]:
        return named_errors(self._reason_of, key=key)

    def stream(self, key: str, *, sha256: str | None = None) -> Iterator[bytes]:
        """The object in chunks. Raises FileNotFoundError at once, not at the first chunk."""
        with self._named_errors(key):
            result = obstore.get(self._store, key)
        return self._chunks(key, result, sha256)

    def stream_range(
        self, key: str, *, start: int, num_bytes: int, sha256: str | None = None
    ) -> Iterator[bytes]:
        """The bytes from `start` on, `num_bytes` of them, in chunks. Raises FileNotFoundError at once,
        ValueError for a range that the object does not hold. `sha256` is of these bytes."""
        size = self.num_bytes(key)
        if start < 0 or num_bytes < 0 or start + num_bytes > size:
            raise ValueError(f"{key} has {size} bytes, not {num_bytes} from {start} on")
        if num_bytes == 0:
            return iter(())
        with self._named_errors(key):
            result = obstore.get(self._store, key, options={"range": (start, start + num_bytes)})
        return self._chunks(key, result, sha256)

    def _chunks(self, key: str, result: GetResult, sha256: str | None) -> Iterator[bytes]:
        def plain() -> Iterator[bytes]:
            with self._named_errors(key):
                for chunk in result.stream(min_chunk_size=CHUNK_BYTES):
                    yield bytes(chunk)

        return plain() if sha256 is None else checked(key, plain(), sha256)

    def num_bytes(self, key: str) -> int:
        """Raises FileNotFoundError."""
        with self._named_errors(key):
            return obstore.head(self._store, key)["size"]

    def read_ahead(
        self, keys: Iterable[str], *, sha256: Iterable[str | None] | None = None
    ) -> Generator[bytes, None, None]:
        """Several objects as one, read one chunk ahead in a thread of its own. Close it, or use it up.
        Raises FileNotFoundError when it comes to an object that is not there. `sha256`: one for each."""
        wanted = ((key, None) for key in keys) if sha256 is None else zip(keys, sha256, strict=True)
        chunks = (chunk for key, digest in wanted for chunk in self.stream(key, sha256=digest))
        with ThreadPoolExecutor(1, thread_name_prefix="read-ahead") as thread:
            ahead = thread.submit(next, chunks, None)
            while (chunk := ahead.result()) is not None:
                ahead = thread.submit(next, chunks, None)
                yield chunk

    def modified_at(self, key: str) -> float:
        """Seconds since the epoch. Raises FileNotFoundError."""
        with self._named_errors(key):
            return obstore.head(self._store, key)["last_modified"].timestamp()

    def download(self, key: str, path: Path, *, sha256: str | None = None) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            for chunk in self.stream(key, sha256=sha256):
                file.write(chunk)

    def probe(self) -> None:
        """Write and delete a small object; raises whatever the store does when that is impossible."""
        key = f"probe/{secrets.token_hex(8)}"
        with self._named_errors():
            obstore.put(self._probe_store, key, b"ok")
            obstore.delete(self._probe_store, key)

    def require_all_rights(self) -> None:
        """Do once all that is ever done: write, list, read, delete. Raises what the store does."""
        key = f"probe/{secrets.token_hex(8)}"
        with self._named_errors():
            obstore.put(self._probe_store, key, b"ok")
        listed, read = self.keys("probe"), b"".join(self.stream(key))
        self.delete(key)
        if key not in listed or read != b"ok":
            raise StorageUnavailableError("the storage does not give back what was just stored")

    def keys(self, prefix: str) -> list[str]:
        with self._named_errors():
            return sorted(item["path"] for page in obstore.list(self._store, prefix) for item in page)

    def delete(self, key: str) -> None:
        """Deleting what is not there is no error: a retried delete must succeed."""
        try:
            with self._named_errors(key):
                obstore.delete(self._store, key)
        except FileNotFoundError:
            return

    def delete_all(self, keys: Sequence[str]) -> None:
        for key in keys:
            self.delete(key)

    def delete_prefix(self, prefix: str) -> None:
        self.delete_all(self.keys(prefix))

    def upload_folder(self, prefix: str, folder: Path) -> None:
        """Store every file below `folder`; last, the sums that `download_folder` checks them by."""
        sums = folder_sums(folder)
        for name in sums:
            self.put(f"{prefix}/{name}", folder / name)
        self.put(f"{prefix}/{SUMS_NAME}", write_sums(sums))

    def download_folder(self, prefix: str, folder: Path) -> None:
        """Raises FileNotFoundError when nothing, or not everything, is stored below `prefix`;
        StorageCorruptError when a file is not what was stored."""
        keys = self.keys(prefix)
        if not keys:
            raise FileNotFoundError(f"nothing is stored below {prefix}")
        sums_key = f"{prefix}/{SUMS_NAME}"
        # What was stored before there were sums has none.
        sums = read_sums(b"".join(self.stream(sums_key))) if sums_key in keys else None
        names: Mapping[str, str | None] = sums or dict.fromkeys(
            key.removeprefix(f"{prefix}/") for key in keys
        )
        for name, sha256 in names.items():
            self.download(f"{prefix}/{name}", folder / name, sha256=sha256)


def checked(key: str, chunks: Iterator[bytes], sha256: str) -> Iterator[bytes]:
    """Raises StorageCorruptError in place of the last chunk."""
    digest = hashlib.sha256()
    held: bytes | None = None
    for chunk in chunks:
        digest.update(chunk)
        if held is not None:
            yield held
        held = chunk
    if digest.hexdigest() != sha256:
        raise StorageCorruptError(f"{key} is not what was stored")
    if held is not None:
        yield held


class _Source:
    """Chunks whose own exception can be told from one of the store."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        self.error: BaseException | None = None

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> bytes:
        try:
            return next(self._chunks)
        except StopIteration:
            raise
        except BaseException as error:
            self.error = error
            raise
