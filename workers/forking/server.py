"""The fork server: prepares something once, and forks a process for each request that comes.

A forked process is one as if it had been started afresh: own session and process group, own log, own
environment, a leash to the server. What the server prepared is shared until one of the two writes to it. The
server itself has one thread, computes nothing while a forked process runs, and knows nothing of what that
process does.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from workers.child import BaseOf
from workers.forking.channel import (
    Ended,
    Refused,
    Request,
    Started,
    read_environment,
    receive_request,
    send_reply,
)
from workers.leash import tie_to_parent

logger = logging.getLogger(__name__)

_READY = b"ready"
_GO = b"!"
_ALONE_SECONDS = 10.0
_TASKS = Path("/proc/self/task")


class CannotForkError(Exception):
    """`for_good`: nor could another server of this worker."""

    def __init__(self, reason: str, *, for_good: bool = False) -> None:
        super().__init__(reason)
        self.for_good = for_good


@dataclass(frozen=True)
class Task:
    """What a forked process is to do."""

    order_path: Path
    messages: int
    """The descriptor to write messages to."""


class ForkServer:
    """`prepare` gets the base of the first request and returns whether it keeps it; it may raise
    CannotForkError. `unfit` says in each forked process why it cannot be used, if it cannot."""

    def __init__(
        self,
        control: socket.socket,
        *,
        prepare: Callable[[str], bool],
        unfit: Callable[[], str | None] = lambda: None,
        idle_seconds: float,
    ) -> None:
        self._control = control
        self._prepare = prepare
        self._unfit = unfit
        self._idle_seconds = idle_seconds
        self._is_prepared = self._is_kept = False
        self._num_threads = num_threads()

    def run(self) -> Task | None:
        """Returns in each forked process what it is to do; in the server None, once nobody wants anything
        for `idle_seconds` or the supervisor is gone."""
        while (received := receive_request(self._control, self._idle_seconds)) is not None:
            request, descriptors = received
            try:
                task = self._fork(request, descriptors)
            except CannotForkError as error:
                send_reply(self._control, Refused(reason=str(error), for_good=error.for_good))
                break
            if task is not None:
                return task
        return None

    def _fork(self, request: Request, descriptors: list[int]) -> Task | None:
        base: BaseOf = "resident"
        if not self._is_prepared:
            self._is_kept = self._prepare(request.base_path)
            self._is_prepared = True
            base = "loaded"
        if not self._is_kept:
            base = "fresh"
        self._wait_until_alone()
        sys.stdout.flush()
        sys.stderr.flush()
        server_pid = os.getpid()
        ours, theirs = socket.socketpair()
        with ours, theirs:
            try:
                pid = os.fork()
            except OSError as error:
                raise CannotForkError(f"fork: {error.strerror}") from error
            if pid == 0:
                ours.close()
                self._control.close()
                return self._begin(request, descriptors, theirs, server_pid=server_pid)
            theirs.close()
            for descriptor in descriptors:
                os.close(descriptor)
            answer = _all_of(ours)
            if answer != _READY:
                ours.close()
                os.waitpid(pid, 0)
                reason = answer.decode() or "the forked process ended at once"
                raise CannotForkError(reason, for_good=bool(answer))
            send_reply(self._control, Started(pid=pid, base=base))
            with suppress(OSError):  # it is dead already; its exit status says why
                ours.sendall(_GO)
        _, status = os.waitpid(pid, 0)
        send_reply(self._control, Ended(exit_code=os.waitstatus_to_exitcode(status)))
        return None

    def _begin(
        self, request: Request, descriptors: list[int], server: socket.socket, *, server_pid: int
    ) -> Task:
        """In the forked process. Nothing is done before the supervisor is told whom to end: should the server
        be killed now, nobody would know of what a job has started."""
        messages, log, environment = descriptors
        _stand_alone(server_pid, log=log, environment=environment)
        reason = self._unfit()
        server.sendall(_READY if reason is None else reason.encode())
        server.shutdown(socket.SHUT_WR)
        if _all_of(server, most=1) != _GO:
            os._exit(1)
        return Task(Path(request.order_path), messages)

    def _wait_until_alone(self) -> None:
        """A lock that another thread holds now would stay locked in the forked process for ever. Threads that
        loading began end by themselves; those from before are OpenBLAS's, which ends and restarts its own
        around a fork."""
        deadline = time.monotonic() + _ALONE_SECONDS
        while num_threads() > self._num_threads:
            if time.monotonic() > deadline:
                raise CannotForkError(f"{num_threads()} threads run in the fork server")
            time.sleep(0.01)


def _all_of(connection: socket.socket, *, most: int = 4096) -> bytes:
    """Until the other side says no more, or so many bytes."""
    heard = b""
    while len(heard) < most and (part := connection.recv(most)):
        heard += part
    return heard


def num_threads() -> int:
    return sum(1 for _ in _TASKS.iterdir())


def _stand_alone(server_pid: int, *, log: int, environment: int) -> None:
    """What `subprocess.Popen` and the leash do for a fresh process."""
    os.setsid()
    tie_to_parent(server_pid)
    for number in (1, 2):
        os.dup2(log, number)
    os.close(log)
    own = read_environment(environment)
    os.environ.clear()
    os.environ.update(own)
