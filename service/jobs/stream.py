"""A job's events as server-sent events: `GET /v1/fine_tuning/jobs/{id}/events?stream=true`.

Oldest first, each with the event's id, so that a client that lost its connection goes on with
`Last-Event-ID` where it was. Between events a comment now and then tells proxies and clients that
the connection lives. The stream ends after the event that ended the job.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from anyio import to_thread

from service.db import Database
from service.errors import ApiError
from service.jobs import repository
from service.jobs.feed import EventFeed
from service.jobs.schemas import EventObject
from service.jobs.states import TERMINAL
from service.models import JobEvent

HEARTBEAT_SECONDS = 15.0
RECONNECT_MILLISECONDS = 2000
BATCH = 200


@dataclass(frozen=True)
class Start:
    """Where a stream begins: behind the event with this sequence, 0 for the first."""

    job_id: str
    after: int


@dataclass(frozen=True)
class _Page:
    lines: list[bytes]
    last: int
    more: bool
    ended: bool


async def event_stream(
    database: Database,
    feed: EventFeed,
    start: Start,
    *,
    still_allowed: Callable[[float], object],
    heartbeat_seconds: float = HEARTBEAT_SECONDS,
) -> AsyncIterator[bytes]:
    """`still_allowed` is called with the time whenever the database is read, in a thread; it raises
    ApiError once the caller's key is revoked, and the stream ends."""
    yield f"retry: {RECONNECT_MILLISECONDS}\n\n".encode()
    after = start.after

    def read() -> _Page:
        still_allowed(time.time())
        return _read(database, start.job_id, after)

    while not feed.closed:
        try:
            page = await to_thread.run_sync(read, limiter=feed.readers)
        except ApiError:
            return
        for line in page.lines:
            yield line
        after = page.last
        if page.more:
            continue
        if page.ended:
            return
        if not await feed.wait(start.job_id, after=after, timeout_seconds=heartbeat_seconds):
            yield b": waiting\n\n"


def _read(database: Database, job_id: str, after: int) -> _Page:
    with database.snapshot() as session:
        # The status first: its end and the last event are one transaction, so where the one is read
        # the other is there.
        ended = repository.status_of(session, job_id) in TERMINAL
        events, more = repository.events_after(session, job_id, after=after, limit=BATCH)
        lines = [_sent(event) for event in events]
        last = events[-1].sequence if events else after
    return _Page(lines, last, more, ended)


def _sent(event: JobEvent) -> bytes:
    return f"id: {event.id}\ndata: {EventObject.of(event).model_dump_json()}\n\n".encode()
