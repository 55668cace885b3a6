"""Public datasets as chat JSONL: SST-2 TSV, AG News CSV, GSM8K JSONL, Alpaca JSON.

Streaming: one row in memory at a time, also of Alpaca's single big array. The questions are ours; the
answers are what the authors of Antidote train on (docs/antidote.md 6). No tokens and no templates here.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import msgspec

from autoclave.data.json_arrays import array_items
from autoclave.errors import DataError, DataIssue, InputError
from autoclave.hashing import file_sha256

MAX_ISSUES = 50

AG_NEWS_CLASSES = ("World", "Sports", "Business", "Sci/Tech")


class Row(NamedTuple):
    """`line` is where the row starts. Either question and answer, or `problem` says why there are none."""

    line: int
    question: str = ""
    answer: str = ""
    problem: str = ""


@dataclass(frozen=True)
class Format:
    about: str
    rows: Callable[[TextIO], Iterator[Row]]


def convert_file(
    source: str | Path, out: str | Path, format: str, *, limit: int | None = None
) -> dict[str, Any]:
    """Writes one conversation (a user and an assistant message) per row. Returns counts and the digest.

    `out` is complete or untouched. Raises InputError for an unknown format, DataError naming the first
    broken rows (all of those within `limit` are looked at) or an empty file.
    """
    if format not in FORMATS:
        raise InputError(f'unknown format "{format}"; known: {", ".join(FORMATS)}.')
    issues: list[DataIssue] = []
    num_rows = num_issues = 0
    partial = Path(out).with_name(f".{Path(out).name}.partial-{os.getpid()}")
    # Undecodable bytes become surrogates, so that the row they are in can be named.
    with open(source, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        try:
            with open(partial, "wb") as target:
                for row in islice(FORMATS[format].rows(file), limit):
                    problem = row.problem or _problem(row)
                    if problem:
                        num_issues += 1
                        fix = f"Correct or delete the row; {format} has {FORMATS[format].about}."
                        issues.append(DataIssue(row.line, "", "bad_row", problem, fix))
                        del issues[MAX_ISSUES:]
                        continue
                    num_rows += 1
                    target.write(_conversation(row))
            if not num_rows and not issues:
                num_issues = 1
                issues.append(
                    DataIssue(0, "", "empty_file", "The file has no rows.", "Check --in and --format.")
                )
            if issues:
                raise DataError(issues, num_issues, str(source))
            os.replace(partial, out)
        finally:
            partial.unlink(missing_ok=True)
    return {"format": format, "examples": num_rows, "out": str(out), "sha256": file_sha256(out)}


def _problem(row: Row) -> str:
    for name, text in (("question", row.question), ("answer", row.answer)):
        if not text.strip():
            return f"The {name} is empty."
        if any("\ud800" <= character <= "\udfff" for character in text):
            return f"The {name} is not valid UTF-8."
    return ""


def _conversation(row: Row) -> bytes:
    messages = [{"role": "user", "content": row.question}, {"role": "assistant", "content": row.answer}]
    return msgspec.json.encode({"messages": messages}) + b"\n"


def _sst2(file: TextIO) -> Iterator[Row]:
    for line, text in enumerate(file, start=1):
        columns = text.rstrip("\r\n").split("\t")
        if line == 1 and columns == ["sentence", "label"]:
            continue
        if len(columns) != 2:
            yield Row(line, problem=f"The row has {len(columns)} tab-separated columns.")
            continue
        sentence, label = columns
        if label not in ("0", "1"):
            yield Row(line, problem=f"The label is {label!r}.")
            continue
        question = f"Is the sentiment of this sentence negative or positive?\n\n{sentence.strip()}"
        yield Row(line, question if sentence.strip() else "", "positive" if label == "1" else "negative")


def _ag_news(file: TextIO) -> Iterator[Row]:
    reader = csv.reader(file, strict=True)
    start = 1
    while True:
        try:
            columns = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield Row(start, problem=f"The row is not valid CSV: {error}.")
            return
        line, start = start, reader.line_num + 1
        if len(columns) != 3:
            yield Row(line, problem=f"The row has {len(columns)} columns.")
        elif columns[0] not in ("1", "2", "3", "4"):
            yield Row(line, problem=f"The class is {columns[0]!r}.")
        else:
            # The files have backslashes where the articles had line breaks.
            text = "\n".join(part.replace("\\", " ").strip() for part in columns[1:])
            question = f"Is this news article about {', '.join(AG_NEWS_CLASSES[:3])} or Sci/Tech?\n\n{text}"
            yield Row(line, question if text.strip() else "", AG_NEWS_CLASSES[int(columns[0]) - 1])


def _gsm8k(file: TextIO) -> Iterator[Row]:
    for line, text in enumerate(file, start=1):
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            yield Row(line, problem=f"The line is not valid JSON: {error}.")
            continue
        problem = _missing_text(value, ("question", "answer"))
        if problem:
            yield Row(line, problem=problem)
            continue
        yield Row(line, value["question"], value["answer"].replace("####", "The final answer is:"))


def _alpaca(file: TextIO) -> Iterator[Row]:
    for line, value, broken in array_items(file):
        problem = broken or _missing_text(value, ("instruction", "output"))
        if problem:
            yield Row(line, problem=problem)
            continue
        extra = value.get("input", "")
        question = (
            f"{value['instruction']}\n\n{extra}" if isinstance(extra, str) and extra else value["instruction"]
        )
        yield Row(line, question, value["output"])


def _missing_text(value: Any, keys: tuple[str, ...]) -> str:
    if not isinstance(value, dict):
        return "The row is not a JSON object."
    for key in keys:
        if not isinstance(value.get(key), str):
            return f'The row has no text "{key}".'
    return ""


FORMATS = {
    "sst2": Format("two tab-separated columns, sentence and label (0 or 1)", _sst2),
    "ag-news": Format("three comma-separated columns, class (1 to 4), title and description", _ag_news),
    "gsm8k": Format('one JSON object per line with "question" and "answer"', _gsm8k),
    "alpaca": Format('one JSON array of objects with "instruction", "input" and "output"', _alpaca),
}
