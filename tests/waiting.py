"""Waiting for what happens elsewhere: in a thread, a process, a server."""

from __future__ import annotations

import time
from collections.abc import Callable


def wait_until(condition: Callable[[], object], timeout_seconds: float = 40.0) -> None:
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        assert time.monotonic() < deadline, f"nothing happened in {timeout_seconds} s"
        time.sleep(0.02)
