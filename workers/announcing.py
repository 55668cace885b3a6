"""Says again and again that a worker of a kind is there (`service.scheduling.workers`)."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Self

import structlog

from service.db import Database
from service.scheduling.workers import ANNOUNCE_SECONDS, Kind, announce

log = structlog.get_logger(__name__)

RETRY_SECONDS = 5.0


class Announcing:
    """A context manager: announces once before its block, and then in a thread, whatever happens."""

    def __init__(self, database: Database, kind: Kind, *, interval_seconds: float = ANNOUNCE_SECONDS) -> None:
        self._database = database
        self._kind = kind
        self._interval_seconds = interval_seconds
        self._stop = threading.Event()

    def _announce(self) -> bool:
        try:
            with self._database.transaction() as session:
                announce(session, self._kind, now=self._database.now())
        except Exception as error:
            # After ten minutes of these, jobs that only we could run are said to fit nobody.
            log.warning("this worker cannot say that it is there", error=str(error))
            return False
        return True

    def _loop(self, announced: bool) -> None:
        while not self._stop.wait(self._interval_seconds if announced else RETRY_SECONDS):
            announced = self._announce()

    def __enter__(self) -> Self:
        self._thread = threading.Thread(
            target=self._loop, args=(self._announce(),), name="announcing", daemon=True
        )
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(timeout=60)
