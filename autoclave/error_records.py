"""An exception as JSON, for another process of ours to raise it again: its class by name, and its arguments.

Only classes of a table are made again: those of `autoclave.errors`, those of files that cannot be opened, and
what the reader adds. Of any other its words arrive, in a RuntimeError. So nothing that is read can name code
to run, as a pickle could.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

from autoclave import errors
from autoclave.errors import AutoclaveError, DataError, DataIssue, NonFiniteLossError, OverlapError

_OWN = tuple(c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, AutoclaveError))
_SYSTEM = (FileNotFoundError, IsADirectoryError, MemoryError, NotADirectoryError, PermissionError)
# Where JSON has another type for an argument than the class.
_MADE_BY: dict[type[Exception], Callable[..., Exception]] = {
    DataError: lambda issues, number, source: DataError([DataIssue(**i) for i in issues], number, source),
    OverlapError: lambda message, pairs: OverlapError(message, [(a, b) for a, b in pairs]),
    NonFiniteLossError: lambda step, loss, examples: NonFiniteLossError(step, loss, tuple(examples)),
}


def encode(error: Exception) -> str:
    """Of one whose arguments JSON cannot say, only the words."""
    record = {"class": _name(type(error)), "text": f"{type(error).__name__}: {error}"}
    try:
        return json.dumps(record | {"arguments": _arguments(error)}, default=_as_json)
    except (TypeError, ValueError):
        return json.dumps(record | {"arguments": None})


def decode(content: str, more: Iterable[type[Exception]] = ()) -> Exception:
    """What `encode` was given, if its class is in the table or in `more` (made again from their `args`)."""
    record = json.loads(content)
    known = {_name(each): each for each in (*_OWN, *_SYSTEM, *more)}
    found = known.get(record["class"])
    if found is None or record["arguments"] is None:
        return RuntimeError(record["text"])
    return _MADE_BY.get(found, found)(*record["arguments"])


def _name(of: type[Exception]) -> str:
    return f"{of.__module__}.{of.__qualname__}"


def _arguments(error: Exception) -> tuple[Any, ...]:
    if isinstance(error, OSError) and error.filename is not None:
        return (*error.args, str(error.filename))  # `args` leaves it out
    return error.args


def _as_json(value: Any) -> Any:
    if isinstance(value, DataIssue):
        return value.as_dict()
    raise TypeError(f"{type(value).__name__} in an error")
