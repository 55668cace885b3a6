"""Server-sent events, read from lines: https://html.spec.whatwg.org/multipage/server-sent-events.html"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class ServerEvent:
    id: str
    data: str


def lines(chunks: Iterable[bytes]) -> Iterator[str]:
    """Of UTF-8 in pieces of any size. Only line feeds end a line (a carriage return before one goes): texts
    may hold other characters that Python takes for the end of a line."""
    rest = b""
    for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            yield line.removesuffix(b"\r").decode("utf-8", "replace")


def parse(lines: Iterable[str]) -> Iterator[ServerEvent]:
    """Lines come without their ends. What is cut off in the middle of an event is no event; an id lasts until
    another one comes."""
    id, data = "", list[str]()
    for line in lines:
        if not line:
            if data:
                yield ServerEvent(id, "\n".join(data))
            data = []
            continue
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            data.append(value)
        elif name == "id" and "\0" not in value:
            id = value
