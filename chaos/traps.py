"""Runs a process of the service with traps: places in its code where it kills itself if the trap is armed.

    python -m chaos.traps api|worker|maintenance ARGUMENTS...

A kill from outside hits the moment between a commit and the answer, or between sending a message and noting
that it was sent, only by luck. A trap is armed by a file of its name and goes off once, in one process.
"""

from __future__ import annotations

import functools
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

FOLDER = "CHAOS_TRAPS"
TRAPS = {
    "api": ("api-after-commit",),
    "worker": ("worker-before-conclude", "worker-after-conclude"),
    "maintenance": ("maintenance-before-send", "maintenance-after-send"),
}


def spring(folder: Path, name: str) -> None:
    """Kill this process if the trap is armed. Of several processes one gets it."""
    try:
        (folder / name).unlink()
    except FileNotFoundError:
        return
    os.kill(os.getpid(), signal.SIGKILL)


def _around(function: Callable[..., Any], folder: Path, *, before: str, after: str) -> Callable[..., Any]:
    @functools.wraps(function)
    def trapped(*arguments: Any, **named: Any) -> Any:
        spring(folder, before)
        result = function(*arguments, **named)
        spring(folder, after)
        return result

    return trapped


def _set_api(folder: Path) -> None:
    from sqlalchemy import event
    from sqlalchemy.orm import Session

    from service.models import Job

    def after_flush(session: Session, _context: Any) -> None:
        if any(isinstance(row, Job) for row in session.new):
            session.info["made_a_job"] = True

    def after_commit(session: Session) -> None:
        if session.info.pop("made_a_job", False):
            spring(folder, "api-after-commit")

    event.listen(Session, "after_flush", after_flush)
    event.listen(Session, "after_commit", after_commit)


def _set_worker(folder: Path) -> None:
    from workers.record import JobRecord

    JobRecord.conclude = _around(  # type: ignore[method-assign]
        JobRecord.conclude, folder, before="worker-before-conclude", after="worker-after-conclude"
    )


def _set_maintenance(folder: Path) -> None:
    from workers.bells import Bells

    Bells.__call__ = _around(  # type: ignore[method-assign]
        Bells.__call__, folder, before="maintenance-before-send", after="maintenance-after-send"
    )


def main() -> int:
    which, *arguments = sys.argv[1:]
    folder = Path(os.environ[FOLDER])
    sys.argv = [which, *arguments]
    if which == "api":
        from service.main import main as serve

        _set_api(folder)
        return serve()
    if which == "worker":
        from workers.worker import main as work

        _set_worker(folder)
        return work()
    from workers.maintenance_process import run_maintenance

    assert which == "maintenance", which
    _set_maintenance(folder)
    run_maintenance()
    return 0


if __name__ == "__main__":
    sys.exit(main())
