"""Says again and again that a worker of a kind is there (`service.scheduling.workers`)."""

from __future__ import annotations

import threading
import time
from types import TracebackType
from typing import Self

import structlog

from service.db import Database
from service.scheduling.workers import ANNOUNCE_SECONDS, Kind, announce

log = structlog.get_logger(__name__)


class Presence:
    """A context manager: announces once before its block, which may raise, and then in a thread, which goes
    on whatever happens."""

    def __init__(self, database: Database, kind: Kind, *, interval_seconds: float = ANNOUNCE_SECONDS) -> None:
        self._database = database
        self._kind = kind
        self._interval_seconds = interval_seconds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="presence", daemon=True)

    def _announce(self) -> None:
        with self._database.transaction() as session:
            announce(session, self._kind, now=time.time())

    def _loop(self) -> None:
        while not self._stop.wait(self._interval_seconds):
            try:
                self._announce()
            except Exception as error:
                # Ten of these in a row, and jobs that only we could run are said to fit nobody.
                log.warning("this worker cannot say that it is there", error=str(error))

    def __enter__(self) -> Self:
        self._announce()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(timeout=60)
