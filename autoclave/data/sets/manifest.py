"""What a set was made from, in `FILE.manifest.json` beside it. Plain JSON, the same for the same inputs: no
times, no paths of this machine."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from autoclave.errors import InputError
from autoclave.hashing import file_sha256


def manifest_file(data: Path) -> Path:
    return data.with_name(f"{data.name}.manifest.json")


def write_manifest(data: Path, manifest: dict[str, Any]) -> None:
    file = manifest_file(data)
    partial = file.with_name(f".{file.name}.partial-{os.getpid()}")
    partial.write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, file)


def read_manifest(data: Path) -> dict[str, Any] | None:
    """None if the set has none. Raises InputError if it is broken, or of another file than `data` is now."""
    file = manifest_file(data)
    if not file.is_file():
        return None
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        expected = manifest["sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{file} is no manifest; make the set again with `autoclave data convert`."
        ) from error
    actual = file_sha256(data)
    if actual != expected:
        raise InputError(
            f"{data} is not what its manifest says: its digest is {actual}, and {expected} was written down. "
            "It was changed by hand: make it again, or delete the manifest."
        )
    assert isinstance(manifest, dict)
    return manifest
