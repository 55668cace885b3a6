"""What time it is for leases: that of the database, the one clock that all processes of a fleet share.

A machine whose clock is wrong, or jumps, would otherwise end the leases of others or lose its own as soon as
it had them. The database is asked once in a while; between two answers the time that passed is counted by the
monotonic clock, which does not jump.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from sqlalchemy.exc import DBAPIError

REFRESH_SECONDS = 30.0
RETRY_SECONDS = 2.0


class DatabaseClock:
    """Safe for threads. `read` asks the database for its seconds since the epoch."""

    def __init__(self, read: Callable[[], float], *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._read = read
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._offset: float | None = None
        """From the monotonic clock to that of the database."""
        self._ask_again_at = 0.0

    def now(self) -> float:
        """Seconds since the epoch. A database that does not answer now is believed what it said last; raises
        its DBAPIError if it never answered."""
        with self._lock:
            if self._offset is None or self._monotonic() >= self._ask_again_at:
                self._offset = self._measured()
            return self._offset + self._monotonic()

    def _measured(self) -> float:
        before = self._monotonic()
        try:
            said = self._read()
        except DBAPIError:
            if self._offset is None:
                raise
            self._ask_again_at = self._monotonic() + RETRY_SECONDS
            return self._offset
        after = self._monotonic()
        self._ask_again_at = after + REFRESH_SECONDS
        return said - (before + after) / 2  # it looked at its clock somewhere between
