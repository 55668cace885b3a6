"""A job's events as they happen, over lost connections and restarts of the server: nothing twice, nothing
left out."""

from __future__ import annotations

import json
import queue
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import httpx

from workers.jobs_cli import sse
from workers.jobs_cli.client import Client, path_of
from workers.jobs_cli.errors import DamagedError, JobsError, UnreachableError
from workers.jobs_cli.patience import Patience

Event = dict[str, Any]
AGAIN_SECONDS = 0.2


def follow(
    client: Client,
    job_id: str,
    patience: Patience,
    *,
    on_connected: Callable[[httpx.Response], None] = lambda _: None,
) -> Iterator[Event]:
    """Oldest first, from the first one to the one that ended the job.

    Raises RefusedError (the job or the key are gone), and UnreachableError when patience is over.
    """
    last: str | None = None
    while True:
        headers = {} if last is None else {"Last-Event-ID": last}
        try:
            with client.stream(
                path_of(job_id, "events"), params={"stream": "true"}, headers=headers
            ) as response:
                patience.answered()
                on_connected(response)
                if response.status_code == httpx.codes.NO_CONTENT:
                    return
                for sent in sse.parse(sse.lines(response.iter_bytes())):
                    last = sent.id or last
                    yield _event(sent)
        except UnreachableError as error:
            patience.wait(error)
        else:
            # After its last event the server ends the stream; also when it stops. Asking once more tells.
            patience.sleep(AGAIN_SECONDS)


def _event(sent: sse.ServerEvent) -> Event:
    try:
        event = json.loads(sent.data)
    except ValueError:
        event = None
    if not isinstance(event, dict):
        raise DamagedError("the event stream is broken: an event is no JSON object")
    return event


class _StoppedError(Exception):
    """Nobody listens any more."""


class Follower:
    """`follow` in a thread of its own, so that somebody can look at the job meanwhile.

        with Follower(client, job_id, patience_seconds=300) as follower:
            events = follower.news()

    `ended` is true once there will be no more events, and `news` has given all of them."""

    def __init__(self, client: Client, job_id: str, *, patience_seconds: float) -> None:
        self.ended = False
        self._client = client
        self._job_id = job_id
        # Silent: who looks at the job meanwhile sees that the server is away, and says so.
        self._patience = Patience(patience_seconds, sleep=self._sleep)
        self._stopping = threading.Event()
        self._queue: queue.SimpleQueue[Event | JobsError | None] = queue.SimpleQueue()
        self._socket: socket.socket | None = None
        self._thread = threading.Thread(target=self._run, name="events", daemon=True)

    def __enter__(self) -> Follower:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._hang_up()
        self._thread.join(timeout=2.0)

    def news(self) -> list[Event]:
        """What came since the last call. Raises what `follow` raised."""
        found: list[Event] = []
        while not self._queue.empty():
            one = self._queue.get()
            if one is None:
                self.ended = True
            elif isinstance(one, JobsError):
                raise one
            else:
                found.append(one)
        return found

    def _run(self) -> None:
        try:
            for event in follow(self._client, self._job_id, self._patience, on_connected=self._connected):
                if self._stopping.is_set():
                    return
                self._queue.put(event)
            self._queue.put(None)
        except JobsError as error:
            self._queue.put(error)
        except _StoppedError:
            pass

    def _sleep(self, seconds: float) -> None:
        if self._stopping.wait(seconds):
            raise _StoppedError

    def _connected(self, response: httpx.Response) -> None:
        self._socket = response.extensions["network_stream"].get_extra_info("socket")
        if self._stopping.is_set():
            self._hang_up()

    def _hang_up(self) -> None:
        """Wakes the thread out of its read; closing the response from here would not."""
        if self._socket is not None:
            with suppress(OSError):  # it had ended already
                self._socket.shutdown(socket.SHUT_RDWR)
