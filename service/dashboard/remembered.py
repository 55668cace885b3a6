"""A value that many ask for at once is made once a moment, not for each of them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")
SHARE = 0.05
"""Of a processor that making it anew may cost, however often it is asked for."""


class Remembered(Generic[T]):
    """Safe for threads. What is remembered is at most `seconds` old, or older where making it takes long."""

    def __init__(self, make: Callable[[], T], *, seconds: float) -> None:
        self._make = make
        self._seconds = seconds
        self._lock = threading.Lock()
        self._made: tuple[T, float] | None = None
        """And until when it is good."""

    def fresh(self) -> T | None:
        """At once: None where it has to be made."""
        made = self._made
        return made[0] if made is not None and time.monotonic() < made[1] else None

    def get(self) -> T:
        with self._lock:
            fresh = self.fresh()
            return self._new() if fresh is None else fresh

    def renew(self) -> T:
        """Made now: for somebody who has just opened the page."""
        with self._lock:
            return self._new()

    def _new(self) -> T:
        started = time.monotonic()
        value = self._make()
        ended = time.monotonic()
        self._made = (value, ended + max(self._seconds, (ended - started) / SHARE))
        return value
