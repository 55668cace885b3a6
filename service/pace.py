"""How often an open page asks again: the more pages are open, the more seldom, so that together they cost a
bounded share of a processor.

A poll says how many seconds its page waits between two. In a window of W seconds a page that waits T asks
W / T times: the sum of all T, divided by W, is the number of open pages.
"""

from __future__ import annotations

import threading
from collections import deque

MIN_SECONDS = 3
MAX_SECONDS = 30
WINDOW_SECONDS = 30.0
POLLS_PER_SECOND = 15.0
"""Of all job pages of this process together; benchmarks/dashboard.py measures what they cost."""


class Pace:
    """Of one process; a page asks the same process as long as its connection lives, and where it does not,
    each process counts its share."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._polls: deque[tuple[float, int]] = deque()
        self._sum = 0

    def asked(self, waits_seconds: int, *, now: float) -> int:
        """Counts a poll of a page that waits `waits_seconds`; answers what it is to wait from now on.
        `now` is monotonic."""
        waits_seconds = min(max(waits_seconds, MIN_SECONDS), MAX_SECONDS)
        with self._lock:
            self._polls.append((now, waits_seconds))
            self._sum += waits_seconds
            while self._polls[0][0] <= now - WINDOW_SECONDS:
                self._sum -= self._polls.popleft()[1]
            pages = self._sum / WINDOW_SECONDS
        return min(max(MIN_SECONDS, round(pages / POLLS_PER_SECOND)), MAX_SECONDS)
