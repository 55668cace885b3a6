"""The SHA-256 of the files of a folder, stored beside them: a checkpoint that rotted is not resumed from."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

from autoclave.hashing import file_sha256
from service.storage.errors import StorageCorruptError

SUMS_NAME = ".sha256.json"
_SHA256 = re.compile(r"[0-9a-f]{64}")


def folder_sums(folder: Path) -> dict[str, str]:
    """By path below the folder, with `/` between."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): file_sha256(path) for path in paths}


def write_sums(sums: Mapping[str, str]) -> bytes:
    return json.dumps(sums, indent=0).encode()


def read_sums(content: bytes) -> dict[str, str]:
    """Raises StorageCorruptError."""
    try:
        sums = json.loads(content)
    except ValueError:
        sums = None
    if not isinstance(sums, dict) or not all(_is_sum(*item) for item in sums.items()):
        raise StorageCorruptError("the sums of a stored folder are not what was stored")
    return sums


def _is_sum(name: str, sha256: object) -> bool:
    """No name leads out of the folder: it becomes a path on this machine."""
    inside = bool(name) and not name.startswith("/") and ".." not in name.split("/")
    return inside and isinstance(sha256, str) and _SHA256.fullmatch(sha256) is not None
