"""A storage that fails: no job is taken until it answers, and the longer the more often it fails."""

from __future__ import annotations

import threading

import structlog

from service.storage import Storage, StorageUnavailableError

log = structlog.get_logger(__name__)

FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 120.0


class StorageOutage:
    """`shutdown`, once set, ends a wait."""

    def __init__(
        self, storage: Storage, shutdown: threading.Event, *, first_pause_seconds: float = FIRST_PAUSE_SECONDS
    ) -> None:
        self._storage = storage
        self._shutdown = shutdown
        self._first_pause_seconds = first_pause_seconds
        self._failures = 0

    def note(self, *, failed: bool) -> None:
        """Whether the storage failed the job that just ended."""
        self._failures = self._failures + 1 if failed else 0

    def _pause_seconds(self, tries: int) -> float:
        pause = self._first_pause_seconds * 2.0 ** min(self._failures + tries - 1, 16)
        return min(pause, LONGEST_PAUSE_SECONDS)

    def wait(self) -> None:
        """Return at once if the last job had no trouble with it; else when it answers."""
        tries = 0
        while self._failures and not self._shutdown.wait(self._pause_seconds(tries)):
            try:
                self._storage.probe()
                return
            except StorageUnavailableError as error:
                tries += 1
                log.warning("storage does not answer; no job is taken", error=str(error), tries=tries)
