"""Output folders that are complete or absent."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from autoclave.errors import InputError


@contextmanager
def output_folder(path: str | Path) -> Iterator[Path]:
    """A folder to write into that takes its name `path` when the block ends without an exception, and is
    removed otherwise. Raises InputError if `path` exists and is not an empty folder: results are never
    mixed with older ones."""
    final = Path(path)
    if final.exists() and (not final.is_dir() or any(final.iterdir())):
        raise InputError(f"{final} exists already and is not an empty folder. Choose another --out.")
    partial = final.with_name(f".{final.name}.partial-{os.getpid()}")
    partial.mkdir(parents=True)
    try:
        yield partial
        os.replace(partial, final)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
