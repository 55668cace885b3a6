"""A database that does not answer is waited for: with a job for as long as its lease, else for good."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

import structlog

from service.jobs.transitions import LeaseLostError
from workers.watch import DATABASE_OUTAGE

log = structlog.get_logger(__name__)

T = TypeVar("T")
PAUSE_SECONDS = 1.0


def within_lease(work: Callable[[], T], *, lease_ttl_seconds: float, what: str) -> T:
    """What `work` returns, tried again while the database does not answer. Raises LeaseLostError once the
    lease, renewed just before this was called, may be over. `what` is waited for, in words."""
    give_up_at = time.monotonic() + lease_ttl_seconds
    while True:
        try:
            return work()
        except DATABASE_OUTAGE as error:
            if time.monotonic() > give_up_at:
                raise LeaseLostError("the database did not answer") from error
            log.warning("database does not answer", waiting=what)
            time.sleep(PAUSE_SECONDS)


def until(shutdown: threading.Event, work: Callable[[], T], *, what: str) -> T | None:
    """As `within_lease`, without a lease: None once `shutdown` is set."""
    while not shutdown.is_set():
        try:
            return work()
        except DATABASE_OUTAGE:
            log.warning("database does not answer", waiting=what)
            shutdown.wait(PAUSE_SECONDS)
    return None
