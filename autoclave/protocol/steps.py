"""Steps whose results are kept under a key of what went in: a run that was killed goes on. Torch-free.

    OUT/steps/NAME/KEY/step.json    inputs, result, seconds, versions and the step's files with their sizes
    OUT/steps/NAME/KEY/...          the files
    OUT/steps/NAME/.KEY.partial     of a step that is going on
    OUT/steps/NAME/.KEY.checkpoints of a training that is going on

A key is the digest of the inputs: settings, digests of files from outside, keys of the steps before. So a
changed setting or file gives other keys from that step on, and results of other keys are never mixed in. What
the inputs do not hold (versions of libraries) is written down and not compared.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoclave.errors import InputError
from autoclave.progress import ProgressCallback

RECORD_FILE = "step.json"
ADAPTER_FOLDER = "adapter"
_KEY_LENGTH = 16


@dataclass(frozen=True)
class Workplace:
    """Where a step works: `folder` becomes the kept one when it is done, `checkpoints` outlives a kill."""

    folder: Path
    checkpoints: Path
    on_progress: ProgressCallback | None


@dataclass(frozen=True)
class Step:
    """`inputs` is plain JSON. `work` writes files into its workplace and returns a plain JSON result."""

    name: str
    inputs: Mapping[str, Any]
    work: Callable[[Workplace], dict[str, Any]]

    @property
    def key(self) -> str:
        return hashlib.sha256(_canonical(self.inputs)).hexdigest()[:_KEY_LENGTH]


@dataclass(frozen=True)
class Done:
    """A step's result; `reused` if an earlier run had it."""

    name: str
    key: str
    folder: Path
    result: dict[str, Any]
    seconds: float
    versions: dict[str, str]
    reused: bool


class StepStore:
    def __init__(self, root: Path) -> None:
        self.root = root

    def folder(self, step: Step) -> Path:
        return self.root / "steps" / step.name / step.key

    def find(self, step: Step) -> Done | None:
        """None if there is no whole result under this key."""
        folder = self.folder(step)
        record = _read(folder / RECORD_FILE)
        if record is None or record["inputs"] != json.loads(_canonical(step.inputs)):
            return None
        if any(not _has_size(folder / name, size) for name, size in record["files"].items()):
            return None
        return Done(
            step.name, step.key, folder, record["result"], record["seconds"], record["versions"], True
        )

    def run(
        self, step: Step, *, versions: dict[str, str], on_progress: ProgressCallback | None = None
    ) -> Done:
        """The kept result, or that of `step.work`, kept when it is whole."""
        found = self.find(step)
        if found:
            return found
        folder = self.folder(step)
        partial = folder.with_name(f".{step.key}.partial")
        checkpoints = folder.with_name(f".{step.key}.checkpoints")
        for left_over in (partial, folder):
            if left_over.exists():
                shutil.rmtree(left_over)
        partial.mkdir(parents=True)
        started = time.perf_counter()
        result = step.work(Workplace(partial, checkpoints, on_progress))
        seconds = round(time.perf_counter() - started, 2)
        record = {
            "name": step.name,
            "key": step.key,
            "inputs": step.inputs,
            "result": result,
            "seconds": seconds,
            "versions": versions,
            "files": {
                str(file.relative_to(partial)): file.stat().st_size
                for file in sorted(partial.rglob("*"))
                if file.is_file()
            },
        }
        (partial / RECORD_FILE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        os.replace(partial, folder)
        shutil.rmtree(checkpoints, ignore_errors=True)
        return Done(
            step.name, step.key, folder, json.loads(json.dumps(result)), seconds, versions, reused=False
        )

    def changes(self, step: Step) -> list[str]:
        """What differs between the inputs of a step and those of its latest kept result; empty if there is
        none. Keys of steps before are named last: they changed because something before them did."""
        records = (self.root / "steps" / step.name).glob(f"*/{RECORD_FILE}")
        latest = max(records, key=lambda file: file.stat().st_mtime, default=None)
        record = _read(latest) if latest else None
        if record is None:
            return []
        before, now = _flat(record["inputs"]), _flat(json.loads(_canonical(step.inputs)))
        fields = [name for name in {**before, **now} if before.get(name) != now.get(name)]
        return [
            _change(name, before.get(name), now.get(name))
            for name in sorted(fields, key=lambda name: (name.startswith("after."), name))
        ]


@contextmanager
def locked(root: Path) -> Iterator[None]:
    """One run at a time in a folder, made if needed and readable for its owner alone: it will hold harmful
    rows and answers. Raises InputError if another process has it."""
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (root / "lock").open("w", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"another run works in {root}. Wait for it, or choose another --out.") from None
        yield


def _canonical(inputs: Mapping[str, Any]) -> bytes:
    return json.dumps(inputs, sort_keys=True).encode()


def _read(file: Path) -> dict[str, Any] | None:
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    needed = {"inputs", "result", "seconds", "versions", "files"}
    return record if isinstance(record, dict) and needed <= record.keys() else None


def _has_size(file: Path, size: int) -> bool:
    return file.is_file() and file.stat().st_size == size


def _flat(values: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(values, dict) or not values:
        return {path: values}
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{path}.{name}" if path else str(name))
    return flat


def _change(name: str, before: Any, now: Any) -> str:
    if name.startswith("after."):
        return f"the step {name.removeprefix('after.')} before it"
    if name.startswith("sha256."):
        return f"the content of {name.removeprefix('sha256.')}"
    return f"{name} from {before} to {now}"
