"""A scratch disk without room: no job is taken until there is some, and what it ended counts against no job.

Nothing else would say so: a worker with a full disk takes job after job and loses each of them at once.
"""

from __future__ import annotations

import errno
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import structlog

from autoclave.disk_space import free_bytes
from workers.endings import Died, Ending, ScratchFull

log = structlog.get_logger(__name__)

FULL_BYTES = 1024 * 1024
"""With less left a disk is full: whoever ran into its end leaves less than a block."""
PAUSE_SECONDS = 1.0
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def says_full(error: OSError) -> bool:
    return error.errno in _FULL


class ScratchSpace:
    """`folder` need not be there. `shutdown`, once set, ends a wait."""

    def __init__(
        self, folder: Path, shutdown: threading.Event, *, pause_seconds: float = PAUSE_SECONDS
    ) -> None:
        self._folder = folder
        self._shutdown = shutdown
        self._pause_seconds = pause_seconds

    def is_full(self) -> bool:
        return free_bytes(self._folder) < FULL_BYTES

    def judged(self, watch_child: Callable[[], tuple[Ending, str]], scratch: Path) -> tuple[Ending, str]:
        """How the process ended, and the end of its log. A disk that is full also without the files in
        `scratch` is not their owner's fault."""
        try:
            ending, tail = watch_child()
        except OSError as error:
            if not says_full(error):
                raise
            log.error("cannot begin: no room for scratch files", error=str(error))
            return ScratchFull(), ""
        if isinstance(ending, Died) and self.is_full():
            shutil.rmtree(scratch, ignore_errors=True)
            ending = ScratchFull() if self.is_full() else ending
        return ending, tail

    def wait(self) -> None:
        """Return at once if there is room."""
        if not self.is_full():
            return
        log.error("no room for scratch files; no job is taken", folder=str(self._folder))
        while not self._shutdown.wait(self._pause_seconds):
            if not self.is_full():
                log.info("there is room for scratch files again")
                return
