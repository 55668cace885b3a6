"""Room for what is about to be written, asked before the first byte is."""

from __future__ import annotations

import shutil
from pathlib import Path

from autoclave.errors import InputError

# For file systems that count more than the bytes of a file, and for whoever else writes there.
_SPARE_BYTES = 256 * 2**20


def free_bytes(path: Path) -> int:
    """Of the file system on which `path` would lie."""
    folder = path.absolute()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def refuse_full_disk(path: Path, num_bytes: int, *, what: str) -> None:
    """Raises InputError if `num_bytes` more (and a little to spare) do not fit where `path` lies."""
    free = free_bytes(path)
    if free < num_bytes + _SPARE_BYTES:
        raise InputError(
            f"no disk space for {what}: it takes {gigabytes(num_bytes)} below {path}, where "
            f"{gigabytes(free)} are free ({gigabytes(_SPARE_BYTES)} stay spare). Free some, or name a folder "
            "on another disk."
        )


def gigabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.2f} GB"
