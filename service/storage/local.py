"""A folder. What is not whole yet lies there under another name, which listings do not show."""

from __future__ import annotations

import re
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path

import obstore
from obstore.store import LocalStore

from service.storage.errors import reason_of_local
from service.storage.interface import Storage

# How the local store names what it has not finished writing.
_UNFINISHED = re.compile(r"#\d+$")


class LocalStorage(Storage):
    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        super().__init__(LocalStore(folder), reason_of_local)
        self._folder = folder

    def _put(self, key: str, content: bytes | BufferedReader | Iterator[bytes]) -> None:
        obstore.put(self._store, key, content)

    def delete_unfinished(self, *, before: float) -> int:
        deleted = 0
        for path in self._folder.rglob("*#*"):
            try:
                if _UNFINISHED.search(path.name) and path.is_file() and path.stat().st_mtime < before:
                    path.unlink()
                    deleted += 1
            except FileNotFoundError:
                continue  # finished or deleted meanwhile
        return deleted
