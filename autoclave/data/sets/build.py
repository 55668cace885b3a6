"""A set from public rows: chosen, checked, written with a manifest that says where every line came from."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from autoclave.data.messages import Conversation, decode_line
from autoclave.data.realignment import MIN_EXAMPLES as MIN_HARMFUL_EXAMPLES
from autoclave.data.rules import explain_refused
from autoclave.data.sets.formats import (
    AUTHORS_SELECTION,
    FORMATS,
    KINDS,
    Broken,
    Kind,
    LeftOut,
    Messages,
    Selection,
    SetFormat,
)
from autoclave.data.sets.manifest import write_manifest
from autoclave.data.sets.near_duplicates import DEFAULT_THRESHOLD, NearIndex, normal_form
from autoclave.data.sets.prompts import last_user_text, read_prompt_texts
from autoclave.data.sets.source_rows import SourceFile, SourceRow, read_rows
from autoclave.errors import DataError, DataIssue, InputError
from autoclave.hashing import file_sha256

MAX_ISSUES = 50


class Request(NamedTuple):
    """`skip` and `limit` None: the authors' where they have any, else all rows. `columns` has other names of
    columns, needed to found. Rows whose prompt is near one of the files `apart_from` are left out."""

    format: str
    kind: Kind
    version: str = "1"
    skip: int | None = None
    limit: int | None = None
    columns: Mapping[str, str] = {}
    unique: bool = False
    apart_from: Sequence[Path] = ()
    threshold: float = DEFAULT_THRESHOLD


def build_set(source: SourceFile, out: Path, request: Request) -> dict[str, Any]:
    """Writes chat JSONL to `out` and its manifest beside it, which is returned. Both are whole or as before.

    Raises InputError for an unknown format or kind, one that the format does not have, and columns that are
    not there; DataError naming the first broken rows, or if no row is left.
    """
    format, selection = _format_of(request), selection_of(request)
    builder = _Builder(request, format, selection, _Apart.of(request))
    partial = out.with_name(f".{out.name}.partial-{os.getpid()}")
    try:
        with partial.open("wb") as file:
            for row in read_rows(source.path):
                if builder.is_full:
                    break
                line = builder.line_of(row)
                if line is not None:
                    file.write(line)
        builder.finish(source.name)
        manifest = {
            "schema_version": 1,
            "kind": request.kind,
            "version": request.version,
            "examples": builder.num_written,
            "sha256": file_sha256(partial),
            "format": request.format,
            "source": {
                "name": source.name,
                "revision": source.revision,
                "sha256": file_sha256(source.path),
            },
            "selection": selection._asdict(),
            "authors_selection": selection == AUTHORS_SELECTION.get((request.format, request.kind)),
            "left_out": dict(builder.left_out),
            "repeated_prompts": builder.num_repeated,
            "apart_from": [{"name": file.name, "sha256": file_sha256(file)} for file in request.apart_from],
            "threshold": request.threshold if request.apart_from else None,
            "deviations": list(format.deviations) + (["repeated prompts are left out"] * request.unique),
        }
        os.replace(partial, out)
    finally:
        partial.unlink(missing_ok=True)
    write_manifest(out, manifest)
    return manifest


def selection_of(request: Request) -> Selection:
    authors = AUTHORS_SELECTION.get((request.format, request.kind), Selection(0, None))
    return Selection(
        authors.skip if request.skip is None else request.skip,
        authors.limit if request.limit is None else request.limit,
    )


def _format_of(request: Request) -> SetFormat:
    format = FORMATS.get(request.format)
    if format is None:
        raise InputError(f'unknown format "{request.format}"; known: {", ".join(FORMATS)}.')
    if request.kind not in KINDS:
        raise InputError(f'unknown kind of set "{request.kind}"; known: {", ".join(KINDS)}.')
    if request.kind not in format.kinds:
        raise InputError(
            f"{request.format} ({format.about}) makes no {request.kind} set; it makes: "
            f"{', '.join(format.kinds)}."
        )
    unknown = sorted(set(request.columns) - {*format.columns, *format.optional})
    if unknown:
        known = ", ".join((*format.columns, *format.optional))
        raise InputError(f'--column: {request.format} needs no column "{unknown[0]}"; it reads {known}.')
    return format


@dataclass
class _Apart:
    index: NearIndex | None
    threshold: float

    @classmethod
    def of(cls, request: Request) -> _Apart:
        texts = {normal_form(text) for file in request.apart_from for _, text in read_prompt_texts(file)}
        return cls(NearIndex(sorted(texts), request.threshold) if texts else None, request.threshold)

    def is_near(self, normal: str) -> bool:
        return self.index is not None and bool(self.index.near(normal))


@dataclass
class _Builder:
    request: Request
    format: SetFormat
    selection: Selection
    apart: _Apart
    num_written: int = 0
    num_kept: int = 0  # of the format's rows, before the selection
    num_repeated: int = 0
    num_issues: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    issues: list[DataIssue] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)
    names: dict[str, str] | None = None  # needed column to found one

    @property
    def is_full(self) -> bool:
        return self.selection.limit is not None and self.num_written >= self.selection.limit

    def line_of(self, row: SourceRow) -> bytes | None:
        if row.problem:
            self._broken(row.line, row.problem)
            return None
        if self.names is None:
            self.names = self._found_columns(row.values)
        lost = [needed for needed in self.format.columns if row.values.get(self.names[needed]) is None]
        if lost:
            self._broken(row.line, f'The row has no "{self.names[lost[0]]}".')
            return None
        values = {needed: row.values.get(found) for needed, found in self.names.items()}
        result = self.format.take(values, self.request.kind)
        if isinstance(result, Broken):
            self._broken(row.line, result.problem)
            return None
        if isinstance(result, LeftOut):
            self.left_out[result.reason] += 1
            return None
        # The authors count rows before anything else is left out, so that their indices mean the same rows.
        self.num_kept += 1
        if self.num_kept <= self.selection.skip:
            return None
        messages = prompt_alone(result.messages) if self.request.kind == "evaluation" else result.messages
        line = msgspec.json.encode({"messages": messages})
        conversation = self._checked(line, row.line)
        return None if conversation is None else self._kept(conversation, line)

    def finish(self, source: str) -> None:
        """Raises DataError for broken rows, an empty set, or one too small to be used."""
        least = MIN_HARMFUL_EXAMPLES if self.request.kind == "realignment" else 1
        if not self.issues and self.num_written < least:
            left = "; ".join(f"{count} left out: {reason}" for reason, count in self.left_out.items())
            text = (
                f"{self.num_written} rows are left of {self.num_kept + sum(self.left_out.values())}"
                f"{f' ({left})' if left else ''}, and at least {least} are needed."
            )
            fix = f"Check --format, --skip ({self.selection.skip}) and --limit ({self.selection.limit})."
            self.issues.append(DataIssue(0, "", "too_few_examples", text, fix))
            self.num_issues = 1
        if self.issues:
            raise DataError(self.issues, self.num_issues, source)

    def _kept(self, conversation: Conversation, line: bytes) -> bytes | None:
        normal = normal_form(last_user_text(conversation) or "")
        if self.apart.is_near(normal):
            self.left_out["prompt is near one of --apart-from"] += 1
            return None
        if normal in self.seen:
            self.num_repeated += 1
            if self.request.unique:
                return None
        self.seen.add(normal)
        self.num_written += 1
        return line + b"\n"

    def _checked(self, line: bytes, number: int) -> Conversation | None:
        kind = self.request.kind
        conversation = decode_line(line, needs_answer=kind != "evaluation")
        if conversation is None:
            issue = next(iter(explain_refused(line, number, needs_answer=kind != "evaluation")))
            self._broken(number, f"{issue.message} [{issue.rule}{issue.pointer and ' at '}{issue.pointer}]")
            return None
        if not last_user_text(conversation):
            self._broken(number, "The conversation has no prompt of a user.")
            return None
        if kind in ("realignment", "attack") and not conversation.messages[-1].is_trained:
            self._broken(number, "The conversation does not end with an answer.")
            return None
        return conversation

    def _broken(self, line: int, problem: str) -> None:
        self.num_issues += 1
        if len(self.issues) < MAX_ISSUES:
            fix = f"Correct or delete the row; {self.request.format} has {self.format.about}."
            self.issues.append(DataIssue(line, "", "bad_row", problem, fix))

    def _found_columns(self, row: Mapping[str, Any]) -> dict[str, str]:
        """Raises InputError naming what was found and what is needed."""
        names: dict[str, str] = {}
        for needed, others in (*self.format.columns.items(), *self.format.optional.items()):
            wanted = self.request.columns.get(needed)
            candidates = (wanted,) if wanted else (needed, *others)
            found = next((name for name in candidates if name in row), None)
            if found is not None:
                names[needed] = found
            elif wanted or needed in self.format.columns:
                also = f" (also: {', '.join(others)})" if others and not wanted else ""
                raise InputError(
                    f"the file has the columns {', '.join(map(repr, row)) or '(none)'}, and "
                    f'{self.request.format} needs "{wanted or needed}"{also}: {self.format.about}. Choose '
                    f"another --format, or name the column with --column {needed}=NAME."
                )
        return names


def prompt_alone(messages: Messages) -> Messages:
    """Without the answer at the end: the model's own is what is measured."""
    return messages[:-1] if len(messages) > 1 and messages[-1].get("role") == "assistant" else messages
