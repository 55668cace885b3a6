"""The child's log: JSON lines in its scratch folder, passed on to the worker's log while it runs, and kept as
readable text for operators when it dies.

Only lines of our own loggers are passed on, and no tracebacks: what libraries print may quote a dataset. The
text that is kept has everything, and is shown to operators alone.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import structlog

from workers.processes import tail

log = structlog.get_logger(__name__)

_OURS = ("autoclave", "service", "workers", "__main__")
_OWN_FIELDS = frozenset({"event", "level", "timestamp", "exception", "logger"})
LINES_AT_ONCE = 200
"""A child that writes without end must not fill the worker's log; the rest is counted."""
_BYTES_AT_ONCE = 1024 * 1024
_KEPT_CHARACTERS = 8192


def parsed(line: str) -> dict[str, Any] | None:
    """A line that our logging wrote; None for anything else."""
    if not line.startswith("{"):
        return None
    try:
        fields = json.loads(line)
    except ValueError:
        return None
    return fields if isinstance(fields, dict) and "event" in fields and "logger" in fields else None


class ChildLog:
    def __init__(self, path: Path, **context: Any) -> None:
        self._path = path
        self._position = path.stat().st_size if path.exists() else 0
        self._context = context

    def pass_on(self) -> int:
        """What was written since the last call, whole lines only; how many lines were passed on."""
        if not self._path.exists():
            return 0
        with self._path.open("rb") as file:
            file.seek(self._position)
            content = file.read(_BYTES_AT_ONCE)
        whole = content[: content.rfind(b"\n") + 1]
        if not whole and len(content) == _BYTES_AT_ONCE:
            whole = content  # one endless line, none of ours
        self._position += len(whole)
        ours = [fields for text in whole.decode("utf-8", "replace").splitlines() if (fields := _ours(text))]
        for fields in ours[:LINES_AT_ONCE]:
            extra = {name: value for name, value in fields.items() if name not in _OWN_FIELDS}
            level = fields["level"] if fields.get("level") in ("warning", "error") else "info"
            getattr(log, level)(fields["event"], **(extra | self._context), logged_at=fields.get("timestamp"))
        if len(ours) > LINES_AT_ONCE:
            log.warning("lines of the child left out", num_lines=len(ours) - LINES_AT_ONCE, **self._context)
        return min(len(ours), LINES_AT_ONCE)


def _ours(text: str) -> dict[str, Any] | None:
    fields = parsed(text)
    return fields if fields and str(fields["logger"]).split(".")[0] in _OURS else None


def log_tail(path: Path) -> str:
    """The end of a child's log as a person reads it, tracebacks included."""
    # A traceback is one line of JSON, so more is read than is kept.
    text = "".join(_line(line) for line in tail(path, 8 * _KEPT_CHARACTERS).splitlines(keepends=True))
    return text if len(text) <= _KEPT_CHARACTERS else text[-_KEPT_CHARACTERS:].partition("\n")[2]


def _line(text: str) -> str:
    fields = parsed(text)
    if fields is None:
        return text
    level = str(fields.get("level", "")).upper()
    line = f"{fields.get('timestamp', '')} {level} {fields['logger']}: {fields['event']}\n"
    exception = fields.get("exception")
    return line if exception is None else f"{line}{exception}\n"
