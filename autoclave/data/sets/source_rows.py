"""Rows of a public dataset from a file, one at a time: CSV, TSV, JSON lines, a JSON array, Parquet.

Or from a dataset on a model hub: `hub:owner/name/path/in/repository`. CSV and JSON may be compressed (.gz,
.xz, .bz2).
"""

from __future__ import annotations

import bz2
import csv
import gzip
import json
import lzma
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from autoclave.data.json_arrays import array_items
from autoclave.errors import InputError
from autoclave.hub.files import dataset_file

_COMPRESSED: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open}
_KINDS = (".csv", ".tsv", ".jsonl", ".json", ".parquet")
_MAX_FIELD_CHARACTERS = 16_777_216
_HUB = "hub:"


class SourceRow(NamedTuple):
    """`line` is where the row starts (of Parquet its number), from 1. `problem` says why there are no
    `values`."""

    line: int
    values: dict[str, Any]
    problem: str = ""


@dataclass(frozen=True)
class SourceFile:
    """`name` is for messages and the manifest; `revision` is the commit of a hub's file."""

    path: Path
    name: str
    revision: str | None = None


def find_source(name: str, revision: str | None = None) -> SourceFile:
    """A file of this machine, or one of a hub, downloaded if it has to be (`hub.files`).

    Raises InputError for what cannot be had."""
    if not name.startswith(_HUB):
        path = Path(name).expanduser()
        if not path.is_file():
            raise InputError(f"{name} is no file of this machine; a file of a hub is hub:owner/name/path.")
        return SourceFile(path, path.name)
    parts = name.removeprefix(_HUB).split("/", 2)
    if len(parts) < 3 or not all(parts):
        raise InputError(f"{name} does not name a file of a hub, such as hub:owner/name/data/train.jsonl.")
    if not revision:
        raise InputError(f"{name} needs --revision, best the commit: what a branch names changes.")
    repo_id, file = f"{parts[0]}/{parts[1]}", parts[2]
    path, commit = dataset_file(repo_id, file, revision)
    return SourceFile(path, f"{repo_id}/{file}", commit)


def read_rows(path: Path) -> Iterator[SourceRow]:
    """In order. Raises InputError for a kind of file that is not known, or one that cannot be read at all; a
    broken row is a SourceRow with a problem, and the last one where what follows cannot be told apart."""
    opener, kind = _kind_of(path)
    if kind == ".parquet":
        yield from _parquet(path)
        return
    try:
        with opener(path, "rt", encoding="utf-8-sig", newline="") as file:
            if kind in (".csv", ".tsv"):
                yield from _separated(file, "\t" if kind == ".tsv" else ",")
            elif kind == ".jsonl":
                yield from _lines(file)
            else:
                yield from _array(file)
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8: {error}") from error


def _kind_of(path: Path) -> tuple[Callable[..., Any], str]:
    name, opener = path, open
    if path.suffix.lower() in _COMPRESSED:
        opener, name = _COMPRESSED[path.suffix.lower()], path.with_suffix("")
    kind = name.suffix.lower()
    if kind not in _KINDS or (kind == ".parquet" and opener is not open):
        raise InputError(
            f"{path}: what kind of file it is cannot be told from its name. Known are {', '.join(_KINDS)}, "
            f"and but for Parquet with {', '.join(_COMPRESSED)} after it."
        )
    return opener, kind


def _separated(file: TextIO, delimiter: str) -> Iterator[SourceRow]:
    csv.field_size_limit(_MAX_FIELD_CHARACTERS)
    reader = csv.reader(file, delimiter=delimiter, strict=True)
    columns: list[str] | None = None
    start = 1
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield SourceRow(start, {}, f"The row is not valid CSV: {error}.")
            return
        line, start = start, reader.line_num + 1
        if columns is None:
            columns = cells
        elif len(cells) != len(columns):
            if cells:
                problem = f"The row has {len(cells)} columns, the header {len(columns)}."
                yield SourceRow(line, {}, problem)
        else:
            yield SourceRow(line, dict(zip(columns, cells, strict=True)))


def _lines(file: TextIO) -> Iterator[SourceRow]:
    for line, text in enumerate(file, start=1):
        if not text.strip():
            continue
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            yield SourceRow(line, {}, f"The line is not valid JSON: {error}.")
            continue
        yield _row(line, value)


def _array(file: TextIO) -> Iterator[SourceRow]:
    for line, value, problem in array_items(file):
        yield SourceRow(line, {}, problem) if problem else _row(line, value)


def _parquet(path: Path) -> Iterator[SourceRow]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ModuleNotFoundError:
        raise InputError(
            f"{path}: reading Parquet needs pyarrow, which is not installed. Install it "
            "(pip install 'autoclave[parquet]'), or convert the file to JSON lines elsewhere."
        ) from None
    try:
        number = 0
        with ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                for values in batch.to_pylist():
                    number += 1
                    yield SourceRow(number, values)
    except (ArrowException, OSError) as error:  # a broken page or footer is an OSError
        raise InputError(f"{path} cannot be read as Parquet: {error}") from error


def _row(line: int, value: Any) -> SourceRow:
    if isinstance(value, dict):
        return SourceRow(line, value)
    return SourceRow(line, {}, "The row is not a JSON object.")
