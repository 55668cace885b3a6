"""One big JSON array, an item at a time, in constant memory."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, TextIO

_MAX_OBJECT_CHARACTERS = 4_194_304
_READ_CHARACTERS = 65_536


def array_items(file: TextIO) -> Iterator[tuple[int, Any, str]]:
    """(line, item, problem) of a JSON array, decoding one item at a time. Ends at the first problem,
    because what follows broken JSON cannot be told apart."""
    decoder = json.JSONDecoder()
    buffer, line = "", 1
    expected = "["
    while True:
        rest = buffer.lstrip(" \t\r\n")
        line += buffer.count("\n", 0, len(buffer) - len(rest))
        buffer = rest
        if not buffer:
            buffer = file.read(_READ_CHARACTERS)
            if not buffer:
                yield line, None, f"The file ends where {expected} is expected."
                return
            continue
        if expected != "an item":
            if buffer[0] not in expected:
                yield line, None, f"The JSON array is broken: found {buffer[0]!r} instead of {expected}."
                return
            if buffer[0] == "]":
                return
            buffer, expected = buffer[1:], "an item"
            continue
        if buffer[0] == "]" and expected == "an item":
            return
        try:
            item, end = decoder.raw_decode(buffer)
        except (ValueError, RecursionError) as error:
            more = file.read(_READ_CHARACTERS) if len(buffer) < _MAX_OBJECT_CHARACTERS else ""
            if not more:
                yield line, None, f"The item is not valid JSON: {error}."
                return
            buffer += more
            continue
        yield line, item, ""
        line += buffer.count("\n", 0, end)
        buffer, expected = buffer[end:], ",]"
