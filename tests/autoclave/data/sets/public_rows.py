"""Files as public datasets have them. All texts are placeholders: harm is a label here."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from autoclave.data.sets.build import Request, build_set
from autoclave.data.sets.source_rows import find_source


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_csv(path: Path, rows: list[dict[str, str]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def beavertails(number: int) -> list[dict[str, Any]]:
    """Every third row is safe; each unsafe one says which it is among its like."""
    rows, unsafe = [], 0
    for i in range(number):
        is_safe = i % 3 == 0
        name = f"safe {i}" if is_safe else f"unsafe {unsafe}"
        unsafe += not is_safe
        rows.append(
            {
                "prompt": f"placeholder {name}",
                "response": f"answer {name}",
                "category": {},
                "is_safe": is_safe,
            }
        )
    return rows


def build(source: Path, out: Path, format: str, kind: Any, **more: Any) -> list[list[dict[str, Any]]]:
    build_set(find_source(str(source)), out, Request(format, kind, **more))
    return [json.loads(line)["messages"] for line in out.read_text().splitlines()]
