"""Bytes under keys. No JSON, no application logic; what a key means lives above.

Keys are made of our own ids, never of anything a user wrote. A `put` is atomic: readers see the
whole object or none, and one that fails midway leaves nothing. Only the prefixes below exist.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import obstore
from obstore.store import LocalStore, ObjectStore

CHUNK_BYTES = 1024 * 1024


def file_key(file_id: str) -> str:
    return f"files/{file_id}"


def private_prefix(job_id: str) -> str:
    """Checkpoints and unsanitised weights. No route reads below `private/`; deleted when the job ends."""
    return f"private/{job_id}"


def adapter_key(job_id: str, fencing_number: int) -> str:
    """The fencing number keeps a worker that lost its lease from replacing what another published."""
    return f"adapters/{job_id}/{fencing_number}.tar"


class Storage:
    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    def put(self, key: str, content: bytes | Path | Iterable[bytes]) -> None:
        """Store `content` whole. An exception raised by the iterable passes through; nothing is kept."""
        if isinstance(content, Path):
            with content.open("rb") as file:
                obstore.put(self._store, key, file)
            return
        obstore.put(self._store, key, content if isinstance(content, bytes) else iter(content))

    def stream(self, key: str) -> Iterator[bytes]:
        """The object in chunks. Raises FileNotFoundError at once, not at the first chunk."""
        result = obstore.get(self._store, key)
        return (bytes(chunk) for chunk in result.stream(min_chunk_size=CHUNK_BYTES))

    def modified_at(self, key: str) -> float:
        """Seconds since the epoch. Raises FileNotFoundError."""
        return obstore.head(self._store, key)["last_modified"].timestamp()

    def download(self, key: str, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            for chunk in self.stream(key):
                file.write(chunk)

    def probe(self) -> None:
        """Write and delete a small object; raises whatever the store does when that is impossible."""
        key = f"probe/{secrets.token_hex(8)}"
        self.put(key, b"ok")
        self.delete(key)

    def keys(self, prefix: str) -> list[str]:
        return sorted(item["path"] for page in obstore.list(self._store, prefix) for item in page)

    def delete(self, key: str) -> None:
        """Deleting what is not there is no error: a retried delete must succeed."""
        try:
            obstore.delete(self._store, key)
        except FileNotFoundError:
            return

    def delete_prefix(self, prefix: str) -> None:
        for key in self.keys(prefix):
            self.delete(key)

    def upload_folder(self, prefix: str, folder: Path) -> None:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                self.put(f"{prefix}/{path.relative_to(folder).as_posix()}", path)

    def download_folder(self, prefix: str, folder: Path) -> None:
        """Raises FileNotFoundError when nothing is stored below `prefix`."""
        keys = self.keys(prefix)
        if not keys:
            raise FileNotFoundError(f"nothing is stored below {prefix}")
        for key in keys:
            self.download(key, folder / key.removeprefix(f"{prefix}/"))


def storage_from_url(url: str) -> Storage:
    """Raises ValueError for a URL that names no supported storage."""
    parts = urlsplit(url)
    if parts.scheme != "file" or parts.netloc or not parts.path.startswith("/"):
        raise ValueError(f"STORAGE_URL: {url!r} is not supported; use file:///absolute/folder")
    folder = Path(unquote(parts.path))
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return Storage(LocalStore(folder))
