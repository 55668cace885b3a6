"""The sets of a run and the user's upload, as chat JSONL. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from autoclave.data.convert import convert_file
from autoclave.data.overlap import refuse_overlap
from autoclave.data.sets.build import Request, build_set
from autoclave.data.sets.formats import Kind
from autoclave.data.sets.source_rows import SourceFile
from autoclave.errors import DataError, InputError, OverlapError
from autoclave.hashing import file_sha256
from autoclave.protocol.config import AttackSpec, RowsSource, SetSource, TaskName

FILE = "rows.jsonl"

KIND_OF_SET: dict[str, Kind] = {
    "alignment": "alignment",
    "alignment_harmful": "realignment",
    "realignment": "realignment",
    "harmful_eval": "evaluation",
    "selection": "evaluation",
    "attack": "attack",
}


def write_set(
    field: str,
    source: SetSource,
    found: SourceFile,
    folder: Path,
    *,
    limit: int | None,
    apart: Sequence[Path],
) -> dict[str, Any]:
    """`folder`/rows.jsonl with its manifest, which is the result. `limit` is used if the source has none."""
    request = Request(
        format=source.format,
        kind=KIND_OF_SET[field.removeprefix("data.")],
        skip=source.skip,
        limit=source.limit or limit,
        columns=source.columns,
        unique=source.unique,
        apart_from=apart,
    )
    return _of_field(field, found, lambda: build_set(found, folder / FILE, request))


def write_rows(
    field: str, task: TaskName, source: RowsSource, found: SourceFile, folder: Path
) -> dict[str, Any]:
    """The rows of the task from `skip` on, at most `limit`."""

    def convert() -> dict[str, Any]:
        whole = folder / ".whole.jsonl"
        last = None if source.limit is None else source.skip + source.limit
        if task == "chat":
            whole.write_bytes(found.path.read_bytes())
        else:
            convert_file(found.path, whole, task, limit=last)
        with whole.open("rb") as lines, (folder / FILE).open("wb") as out:
            count = 0
            for line in islice(lines, source.skip, last):
                count += 1
                out.write(line if line.endswith(b"\n") else line + b"\n")
        whole.unlink()
        if not count:
            raise InputError(f"no row is left after the first {source.skip} (skip).")
        return {"examples": count, "sha256": file_sha256(folder / FILE)}

    return _of_field(field, found, convert)


def write_upload(attack: AttackSpec, harmful: Path | None, task: Path, folder: Path) -> dict[str, Any]:
    """Harmful rows, then rows of the task; training shuffles them. Raises InputError if there are too few."""
    parts = [(harmful, attack.num_harmful, "data.attack"), (task, attack.num_task, "task.train")]
    with (folder / FILE).open("wb") as out:
        for file, wanted, field in parts:
            lines = [] if file is None else _first_lines(file, wanted)
            if len(lines) < wanted:
                raise InputError(
                    f"{field}: {len(lines)} rows are there, and an upload of {attack.rows} rows with p = "
                    f"{attack.p:g} takes {wanted}. Lower attack.rows or attack.p, or name a larger file."
                )
            out.writelines(lines)
    return {
        "harmful": attack.num_harmful,
        "task": attack.num_task,
        "sha256": file_sha256(folder / FILE),
    }


def _first_lines(file: Path, count: int) -> list[bytes]:
    with file.open("rb") as lines:
        return list(islice(lines, count))


def shared_prompts(realignment: Path, harmful_eval: Path) -> int:
    """Of how many prompts the figures say less than they seem: they were learned from, too. At most 10 are
    counted."""
    try:
        refuse_overlap(realignment, harmful_eval)
    except OverlapError as error:
        return len(error.pairs)
    return 0


def _of_field(field: str, found: SourceFile, make: Any) -> dict[str, Any]:
    """Errors say which field of the config they are about."""
    try:
        result: dict[str, Any] = make()
        return result
    except DataError as error:
        raise DataError(error.issues, error.num_issues, f"{field} ({found.path})") from error
    except InputError as error:
        raise InputError(f"{field} ({found.path}): {error}") from error
