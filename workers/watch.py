"""Watches one child under one claim until it is gone: messages, heartbeats, stops, deadline, shutdown.

The loop never waits long for any one thing. A database that does not answer is survived for as long as
the lease lasts; after that the job may belong to somebody else, and the child is ended.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import structlog
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from service.jobs.lease import StopRequest
from service.jobs.transitions import LeaseLostError
from workers.child import ChildProcess
from workers.endings import Ending, StopReason, ending_of
from workers.escalation import Escalation, Step
from workers.messages import (
    AnyMessage,
    BasePrepared,
    Failed,
    MemoryEstimated,
    ProgressMade,
    Published,
    StageFinished,
    Verdict,
)
from workers.order import set_stop_flag

log = structlog.get_logger(__name__)

TICK_SECONDS = 0.1
PROGRESS_SECONDS = 0.5
"""Progress is written at most this often; what is between is skipped."""
ASK_SECONDS = 1.0
"""What the job's owner asks for is looked up this often where neither heartbeat nor progress brings it: a
cancel must end a child that hangs within five seconds."""
CANCEL_TERMINATE_SECONDS = 0.5
"""From SIGTERM to SIGKILL after a cancel, at most: there is nothing to save."""
_MESSAGES_PER_TICK = 1000
"""A child that never stops talking must not keep us from the heartbeat."""

_SAVING = (StopReason.PAUSE, StopReason.DRAIN)
"""The child is given time to save what it has done."""

DATABASE_OUTAGE = (OperationalError, InterfaceError, PoolTimeoutError)


@dataclass(frozen=True)
class Limits:
    """Seconds, as in `service.settings.Settings`."""

    lease_ttl_seconds: float
    heartbeat_seconds: float
    max_attempts: int
    cancel_grace_seconds: float
    pause_grace_seconds: float
    drain_grace_seconds: float
    terminate_grace_seconds: float
    stage_deadline_seconds: float
    worker_memory_bytes: int
    """0: not declared."""


class Record(Protocol):
    """What a watch writes: of a job (`workers.record`) or of a base (`workers.bases.record`). Each method
    raises LeaseLostError."""

    def heartbeat(self, progress: ProgressMade | None = None) -> StopRequest | None: ...

    def asked(self) -> StopRequest | None: ...

    def apply(self, message: AnyMessage) -> None: ...


class Watch:
    def __init__(
        self,
        child: ChildProcess,
        record: Record,
        limits: Limits,
        *,
        stop_flag: Path,
        shutdown: threading.Event,
        on_heartbeat: Callable[[], object] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._child = child
        self._record = record
        self._limits = limits
        self._stop_flag = stop_flag
        self._shutdown = shutdown
        self._on_heartbeat = on_heartbeat
        self._clock = clock
        now = clock()
        self._renewed_at = now
        self._stage_began_at = now
        self._next_heartbeat_at = self._ask_at = now
        self._unwritten: deque[AnyMessage] = deque()
        self._progress: ProgressMade | None = None
        self._progress_at = now - PROGRESS_SECONDS
        self._verdict: Verdict | None = None
        self._stop_reason: StopReason | None = None
        self._escalation: Escalation | None = None
        self._hurried = False

    def run(self) -> Ending:
        """Return when the process group is gone and everything the child said is written.

        Raises LeaseLostError; the caller then ends the child and writes nothing.
        """
        closed = False
        while True:
            if not closed:
                closed = self._listen()
            else:
                time.sleep(TICK_SECONDS)
            self._write()
            exit_code = self._child.exit_code()
            if exit_code is not None:
                # Stragglers of the group may hold the pipe open; end them so that it closes.
                if self._child.gone() and closed and not self._unwritten:
                    break
            else:
                self._look_at_the_clock()
        return ending_of(exit_code=exit_code, verdict=self._verdict, stop_reason=self._stop_reason)

    def _listen(self) -> bool:
        """Take the messages that arrived, waiting one tick at most; True once the pipe is closed."""
        wait = TICK_SECONDS
        for _ in range(_MESSAGES_PER_TICK):
            try:
                message = self._child.message(wait)
            except TimeoutError:
                return False
            wait = 0.0
            match message:
                case None:
                    return True
                case ProgressMade():
                    self._progress = message
                case Published() | Failed() | BasePrepared():
                    self._verdict = message
                    self._stop(StopReason.VERDICT, flag_seconds=self._limits.terminate_grace_seconds)
                case MemoryEstimated(num_bytes=needed):
                    self._unwritten.append(message)
                    if 0 < self._limits.worker_memory_bytes < needed:
                        self._stop(StopReason.TOO_LARGE, flag_seconds=0.0)
                case StageFinished():
                    self._unwritten.append(message)
                    self._stage_began_at = self._clock()
                    self._progress = None
                case _:
                    self._unwritten.append(message)
        return False

    def _write(self) -> None:
        now = self._clock()
        try:
            while self._unwritten:
                self._record.apply(self._unwritten[0])
                self._unwritten.popleft()
                self._renewed_at = now
            progress_due = self._progress is not None and now - self._progress_at >= PROGRESS_SECONDS
            if now >= self._next_heartbeat_at or progress_due:
                self._on_heartbeat()
                self._obey(self._record.heartbeat(self._progress))
                self._renewed_at = now
                self._next_heartbeat_at = now + self._limits.heartbeat_seconds
                if self._progress is not None:
                    self._progress, self._progress_at = None, now
                self._ask_at = now + ASK_SECONDS
            elif now >= self._ask_at:
                self._obey(self._record.asked())
                self._ask_at = now + ASK_SECONDS
        except DATABASE_OUTAGE as error:
            silent_seconds = self._clock() - self._renewed_at
            if silent_seconds >= self._limits.lease_ttl_seconds:
                raise LeaseLostError("the database did not answer for as long as the lease lasts") from error
            log.warning("database does not answer", silent_seconds=round(silent_seconds, 1))
            time.sleep(min(1.0, self._limits.heartbeat_seconds))

    def _obey(self, asked: StopRequest | None) -> None:
        match asked:
            case StopRequest.CANCEL:
                self._stop(StopReason.CANCEL, flag_seconds=self._limits.cancel_grace_seconds)
            case StopRequest.PAUSE:
                self._stop(StopReason.PAUSE, flag_seconds=self._limits.pause_grace_seconds)
            case None:
                pass

    def _look_at_the_clock(self) -> None:
        now = self._clock()
        if now - self._stage_began_at > self._limits.stage_deadline_seconds:
            self._stop(StopReason.DEADLINE, flag_seconds=0.0)
        if self._shutdown.is_set():
            self._stop(StopReason.DRAIN, flag_seconds=self._limits.drain_grace_seconds)
        if self._escalation is not None:
            match self._escalation.due(now):
                case Step.TERMINATE:
                    self._child.terminate()
                case Step.KILL:
                    self._child.kill()
                case None:
                    pass

    def _stop(self, reason: StopReason, *, flag_seconds: float) -> None:
        """Begin to stop the child. A shutdown hurries a stop that has already begun, because a worker
        is not given long to end; the first reason stays, but a cancel ends a pause and a drain."""
        first, now = self._stop_reason is None, self._clock()
        if first or (reason is StopReason.CANCEL and self._stop_reason in _SAVING):
            self._stop_reason = reason
            set_stop_flag(self._stop_flag, pause=reason in _SAVING)
            log.info("stopping child", pid=self._child.pid, reason=reason.value)
        elif reason is not StopReason.DRAIN or self._hurried:
            return
        elif self._stop_reason not in _SAVING:
            flag_seconds = 0.0
        self._hurried = self._hurried or reason is StopReason.DRAIN
        if self._hurried and self._escalation is not None:
            left = self._escalation.since + self._escalation.flag_seconds - now
            flag_seconds = max(0.0, min(flag_seconds, left))
        terminate_seconds = self._limits.terminate_grace_seconds
        if self._stop_reason is StopReason.CANCEL:
            terminate_seconds = min(terminate_seconds, CANCEL_TERMINATE_SECONDS)
        self._escalation = Escalation(now, flag_seconds, terminate_seconds)
