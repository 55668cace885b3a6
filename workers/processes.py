"""Process groups: is anybody left in one, and end it for good. No knowledge of jobs."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

_PROC = Path("/proc")


def group_alive(group: int) -> bool:
    """Whether a process of the group still runs. Zombies do not count: they hold no memory and no
    accelerator, and in a container nobody may ever reap them."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return False  # the number belongs to somebody else by now
    if not _PROC.is_dir():
        return True
    return any(_runs_in_group(entry, group) for entry in _PROC.iterdir() if entry.name.isdigit())


def _runs_in_group(entry: Path, group: int) -> bool:
    try:
        # "pid (name) state ppid pgrp ...": the name may contain spaces and parentheses.
        state, _parent, process_group = (entry / "stat").read_text().rpartition(")")[2].split()[:3]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return int(process_group) == group and state not in "ZX"


def group_resident_bytes(group: int) -> int | None:
    """Memory that the processes of a group hold, shared pages counted once for each; None where the system
    does not say."""
    if not _PROC.is_dir():
        return None
    page_bytes = os.sysconf("SC_PAGE_SIZE")
    total = 0
    for entry in _PROC.iterdir():
        try:
            if entry.name.isdigit() and _runs_in_group(entry, group):
                total += int((entry / "statm").read_text().split()[1]) * page_bytes
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended meanwhile
    return total


def signal_group(group: int, number: signal.Signals) -> None:
    """Nobody left to receive it is no error."""
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        return


def kill_group(group: int, *, timeout_seconds: float = 10.0) -> bool:
    """SIGKILL to the whole group; True once nobody is left in it."""
    deadline = time.monotonic() + timeout_seconds
    while group_alive(group):
        signal_group(group, signal.SIGKILL)
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def tail(path: Path, num_bytes: int = 8192) -> str:
    """The last lines of a log, whole ones only where possible."""
    if not path.exists():
        return ""
    with path.open("rb") as file:
        file.seek(0, os.SEEK_END)
        start = max(0, file.tell() - num_bytes)
        file.seek(start)
        content = file.read()
    if start and b"\n" in content:
        content = content.split(b"\n", 1)[1]
    # PostgreSQL's text type refuses NUL.
    return content.decode("utf-8", errors="replace").replace("\0", "\N{REPLACEMENT CHARACTER}")
