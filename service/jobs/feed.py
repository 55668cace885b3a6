"""Tells many waiting clients that a job has news, with one query for all of them.

A stream that waits costs a future in memory: no thread, no connection. One task asks the database
every half second for the newest event of each job that somebody waits for, and only while somebody
does. What is new, each stream then reads for itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import structlog
from anyio import CapacityLimiter, to_thread

from service.db import Database
from service.jobs import repository

log: structlog.stdlib.BoundLogger = structlog.get_logger()

POLL_SECONDS = 0.5
MAX_READERS = 4


@dataclass(eq=False)
class _Waiter:
    job_id: str
    after: int
    woken: asyncio.Future[None]


class EventFeed:
    """Belongs to one event loop. `closed` is set when the server stops: streams end then, because a
    server waits for its connections."""

    def __init__(self, database: Database, *, poll_seconds: float = POLL_SECONDS) -> None:
        self.closed = False
        self.readers = CapacityLimiter(MAX_READERS)
        """For what reads on behalf of streams: they must not take the threads of other requests."""
        self._database = database
        self._poll_seconds = poll_seconds
        self._waiters: set[_Waiter] = set()
        self._task: asyncio.Task[None] | None = None

    async def wait(self, job_id: str, *, after: int, timeout_seconds: float) -> bool:
        """True as soon as the job has an event with a sequence above `after`, False if none came in time
        or the feed was closed."""
        waiter = _Waiter(job_id, after, asyncio.get_running_loop().create_future())
        self._waiters.add(waiter)
        try:
            if self.closed:
                return False
            if self._task is None or self._task.done():
                self._task = asyncio.create_task(self._poll())
            async with asyncio.timeout(timeout_seconds):
                await waiter.woken
        except TimeoutError:
            return False
        finally:
            self._waiters.discard(waiter)
        return not self.closed

    def close(self) -> None:
        """Wakes every stream for the last time. To be called in the feed's event loop."""
        self.closed = True
        for waiter in self._waiters:
            if not waiter.woken.done():
                waiter.woken.set_result(None)
        if self._task is not None:
            self._task.cancel()

    @property
    def num_waiting(self) -> int:
        return len(self._waiters)

    async def _poll(self) -> None:
        while self._waiters:
            await asyncio.sleep(self._poll_seconds)
            job_ids = sorted({waiter.job_id for waiter in self._waiters})
            try:
                newest = await to_thread.run_sync(self._newest, job_ids, limiter=self.readers)
            except Exception as error:
                # Streams stay open meanwhile: the database comes back, or their clients give up.
                log.warning("event_feed_fails", error=type(error).__name__, exc_info=error)
                continue
            for waiter in self._waiters:
                if newest.get(waiter.job_id, 0) > waiter.after and not waiter.woken.done():
                    waiter.woken.set_result(None)

    def _newest(self, job_ids: Sequence[str]) -> dict[str, int]:
        with self._database.snapshot() as session:
            return repository.newest_events(session, job_ids)
