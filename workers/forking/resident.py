"""The process beside a worker that keeps the base of its last job, for the next job of the same base.

Started for the first job that wants one and leashed to this process. It ends by itself some time after the
last job, and is ended when a job wants another base or the files of this one changed. Whatever goes wrong
with it costs a job no more than the time that a fresh process takes.
"""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import structlog

from autoclave.hashing import folder_stamp
from workers.child import GroupLeader, Handover
from workers.child_log import ChildLog
from workers.forking.channel import Replies, Reply, Request, environment_file, send_request
from workers.forking.forked import ForkedProcess
from workers.leash import leashed
from workers.processes import kill_group

log = structlog.get_logger(__name__)

_MOST_FAILURES = 3
"""In a row: then the worker does without."""

ServerCommand = Callable[[int], list[str]]
"""From the descriptor of the server's socket to its arguments."""


class _Failures:
    """In a row, of one worker's servers."""

    def __init__(self) -> None:
        self._number = 0

    @property
    def are_too_many(self) -> bool:
        return self._number >= _MOST_FAILURES

    def note(self, reason: str, *, for_good: bool = False) -> None:
        self._number = _MOST_FAILURES if for_good else self._number + 1
        log.warning(
            "no resident base, a fresh process instead", reason=reason, tries_again=not self.are_too_many
        )

    def forget(self) -> None:
        self._number = 0


class _Server:
    """One fork server, for one state of one base."""

    def __init__(
        self,
        command: ServerCommand,
        environment: dict[str, str],
        *,
        holds: tuple[str, str],
        log_path: Path,
        failures: _Failures,
    ) -> None:
        self.holds = holds
        self._failures = failures
        self._control, other = socket.socketpair()
        self._replies = Replies(self._control)
        try:
            with other, log_path.open("wb") as output:
                self._process = subprocess.Popen(
                    leashed(command(other.fileno())),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    pass_fds=(other.fileno(),),
                    start_new_session=True,
                    env=environment,
                )
        except BaseException:
            self._control.close()
            raise
        self.pid = self._process.pid

    def ask(self, request: Request, handover: Handover) -> None:
        """Raises OSError."""
        environment = environment_file(handover.environment)
        try:
            send_request(self._control, request, [handover.messages, handover.log, environment])
        finally:
            os.close(environment)

    def exit_code(self) -> int | None:
        return self._process.poll()

    def replies(self) -> list[Reply]:
        return self._replies.take()

    def kill(self) -> None:
        self._process.kill()

    def worked(self) -> None:
        self._failures.forget()

    def failed(self, reason: str, *, for_good: bool) -> None:
        self._failures.note(reason, for_good=for_good)
        self.end()

    def end(self) -> None:
        """Nobody of its group is left then; a process that it forked dies by its leash."""
        kill_group(self.pid)
        self._process.wait(10)
        self._control.close()


class ResidentBase:
    """Use it from one thread that stays (`workers.leash`). `environment` is what the server gets, which forks
    for all jobs; a job's own environment comes with its handover."""

    def __init__(self, command: ServerCommand, environment: Callable[[], dict[str, str]], *, log_path: Path):
        self._command = command
        self._environment = environment
        self._log_path = log_path
        self._log = ChildLog(log_path)
        self._server: _Server | None = None
        self._failures = _Failures()

    @property
    def pid(self) -> int | None:
        """Of the server, if one was started and has not been found to have ended."""
        return None if self._server is None else self._server.pid

    def fork(
        self, request: Request, handover: Handover, fresh: Callable[[Handover], GroupLeader]
    ) -> GroupLeader:
        """The process of a job; a fresh one where there can be no server."""
        server = self._server_for(request.base_path)
        if server is None:
            return fresh(handover)
        try:
            server.ask(request, handover)
        except OSError as error:
            server.failed(f"it cannot be asked: {error.strerror}", for_good=False)
            return fresh(handover)
        return ForkedProcess(server, handover, fresh)

    def _server_for(self, base_path: str) -> _Server | None:
        if self._failures.are_too_many:
            return None
        try:
            wanted = (base_path, folder_stamp(base_path))
        except OSError:
            return None  # the job will say so
        server = self._server
        if server is not None and (server.exit_code() is not None or server.holds != wanted):
            if server.exit_code() is None:
                log.info("the resident base is not the one that is wanted now", pid=server.pid)
            self.end()
        if self._server is None:
            try:
                self._server = _Server(
                    self._command,
                    self._environment(),
                    holds=wanted,
                    log_path=self._log_path,
                    failures=self._failures,
                )
            except OSError as error:
                self._failures.note(f"it cannot be started: {error.strerror}")
                return None
            self._log = ChildLog(self._log_path)
            log.info("a process for the base is started", pid=self._server.pid)
        return self._server

    def pass_on_log(self) -> None:
        """What it logged, to our own log."""
        self._log.pass_on()

    def end(self) -> None:
        """Gives its memory back."""
        server, self._server = self._server, None
        if server is not None:
            server.end()
            self.pass_on_log()
