"""A process that a fork server of ours forks: what a supervisor sees of it.

It is no child of this process, so that its exit status comes from the server. Until it is there, the server
works for it, and whoever ends it ends the server. Should the server refuse or end before, a fresh process
takes its place.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Protocol

from workers.child import BaseOf, GroupLeader, Handover
from workers.forking.channel import Ended, Refused, Reply, Started
from workers.processes import group_alive, signal_group

UNREPORTED_SECONDS = 1.0
"""A process that we ended is gone, and its server says nothing for so long: it hangs."""


class Server(Protocol):
    """As much of a fork server as concerns one process."""

    @property
    def pid(self) -> int: ...

    def exit_code(self) -> int | None: ...

    def replies(self) -> list[Reply]: ...

    def kill(self) -> None: ...

    def worked(self) -> None:
        """It forked the process."""

    def failed(self, reason: str, *, for_good: bool) -> None:
        """It did not, and is of no use any more."""


class ForkedProcess:
    """`fresh` starts the process that takes its place."""

    def __init__(self, server: Server, handover: Handover, fresh: Callable[[Handover], GroupLeader]) -> None:
        self._server = server
        # Open until it is certain who writes there: the pipe must not look as if its writer had ended.
        self._kept = Handover(os.dup(handover.messages), os.dup(handover.log), handover.environment)
        self._is_kept = True
        self._spawn = fresh
        self._fresh: GroupLeader | None = None
        self._pid: int | None = None
        self._exit_code: int | None = None
        self._is_to_end = False
        self._gone_at: float | None = None
        self.base: BaseOf = "fresh"

    @property
    def pid(self) -> int:
        if self._fresh is not None:
            return self._fresh.pid
        return self._server.pid if self._pid is None else self._pid

    def exit_code(self) -> int | None:
        if self._fresh is not None:
            return self._fresh.exit_code()
        if self._exit_code is None:
            server_exit_code = self._server.exit_code()
            self._hear()
            if self._exit_code is None and self._fresh is None:
                if server_exit_code is not None:
                    self._lose_server(server_exit_code)
                elif self._is_to_end and self._pid is not None:
                    self._expect_report(self._pid)
        return self._exit_code

    def _hear(self) -> None:
        for reply in self._server.replies():
            match reply:
                case Started(pid=pid, base=base):
                    self._pid, self.base = pid, base
                    self._server.worked()
                    self._close()
                case Ended(exit_code=exit_code):
                    self._exit_code = exit_code
                case Refused(reason=reason, for_good=for_good):
                    self._replace(reason, for_good=for_good)

    def _lose_server(self, server_exit_code: int) -> None:
        if self._pid is not None:
            # The leash ended it with the server.
            self._exit_code = -signal.SIGKILL
        elif self._is_to_end:
            self._exit_code = server_exit_code
        else:
            self._replace(f"it ended with status {server_exit_code}", for_good=False)
        self._close()

    def _expect_report(self, pid: int) -> None:
        if self._gone_at is None:
            self._gone_at = None if group_alive(pid) else time.monotonic()
        elif time.monotonic() - self._gone_at > UNREPORTED_SECONDS:
            self._server.kill()

    def _replace(self, reason: str, *, for_good: bool) -> None:
        self._server.failed(reason, for_good=for_good)
        if self._is_to_end:
            self._exit_code = -signal.SIGTERM
        else:
            self._fresh = self._spawn(self._kept)
        self._close()

    def _close(self) -> None:
        if self._is_kept:
            os.close(self._kept.messages)
            os.close(self._kept.log)
            self._is_kept = False

    def send(self, number: signal.Signals) -> None:
        self.exit_code()  # it may have taken over from the server
        self._is_to_end = True
        signal_group(self.pid, number)

    def wait(self, timeout_seconds: float) -> bool:
        self._is_to_end = True
        deadline = time.monotonic() + timeout_seconds
        while self.exit_code() is None:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.005)
        self._close()
        return True
