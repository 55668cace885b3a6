"""How one attempt at a job ended, decided from what is known when the child is gone. Pure.

a cancel was asked for     -> Cancelled     whatever else happened
the child gave a verdict   -> Finished      it published, or it says why it cannot
a stage took too long      -> DeadlineExceeded
a pause was asked for      -> Paused        keeps its newest checkpoint, not counted as an attempt
this worker shuts down     -> Drained       goes back to the queue, not counted as an attempt
it needs more memory       -> TooLarge      goes back to the queue, not counted, for a larger worker
exit code 42               -> OutOfMemory   once more with half the micro-batch
exit code 43               -> StorageDown   goes back to the queue, not counted as an attempt
the scratch disk is full   -> ScratchFull   goes back to the queue, not counted as an attempt
anything else              -> Died          back to the queue while attempts are left
"""

from __future__ import annotations

import signal
from dataclasses import dataclass
from enum import StrEnum
from typing import TypedDict

from service.jobs.attempts import ExitReason
from workers.messages import Failed, Verdict
from workers.order import JUDGE_AWAY_EXIT, OUT_OF_MEMORY_EXIT, RANK_LOST_EXIT, STORAGE_DOWN_EXIT


class StopReason(StrEnum):
    """Why a child that still runs was told to stop."""

    CANCEL = "cancel"
    VERDICT = "verdict"
    """It said how it ended but does not exit."""
    DEADLINE = "deadline"
    PAUSE = "pause"
    """Its owner wants to go on later: it saves a checkpoint before it stops."""
    TOO_LARGE = "too_large"
    """It needs more memory than this worker's device has."""
    DRAIN = "drain"
    """Its worker shuts down: it saves a checkpoint before it stops, if that goes fast."""


@dataclass(frozen=True)
class Cancelled:
    pass


@dataclass(frozen=True)
class Finished:
    verdict: Verdict


@dataclass(frozen=True)
class DeadlineExceeded:
    pass


@dataclass(frozen=True)
class Paused:
    pass


@dataclass(frozen=True)
class Drained:
    pass


@dataclass(frozen=True)
class TooLarge:
    pass


@dataclass(frozen=True)
class OutOfMemory:
    pass


@dataclass(frozen=True)
class StorageDown:
    pass


@dataclass(frozen=True)
class ScratchFull:
    pass


@dataclass(frozen=True)
class Died:
    exit_code: int
    """Negative: the number of the signal."""

    @property
    def code(self) -> str:
        if self.exit_code == JUDGE_AWAY_EXIT:
            return "judge_unavailable"
        is_lost = self.exit_code < 0 or self.exit_code == RANK_LOST_EXIT
        return "worker_lost" if is_lost else "internal_error"

    def __str__(self) -> str:
        if self.exit_code == -signal.SIGKILL:
            return "its process was killed (SIGKILL; the machine may have run out of memory)"
        if self.exit_code < 0:
            return f"its process was ended by {signal.Signals(-self.exit_code).name}"
        if self.exit_code == RANK_LOST_EXIT:
            return "one of the processes that trained it together was killed or lost"
        if self.exit_code == JUDGE_AWAY_EXIT:
            return "the judge of its base model did not answer"
        return "its process stopped because of an internal error"


Ending = (
    Cancelled
    | Finished
    | DeadlineExceeded
    | Paused
    | Drained
    | TooLarge
    | OutOfMemory
    | StorageDown
    | ScratchFull
    | Died
)


_STOPPED: dict[StopReason | None, Ending] = {
    StopReason.DEADLINE: DeadlineExceeded(),
    StopReason.PAUSE: Paused(),
    StopReason.DRAIN: Drained(),
    StopReason.TOO_LARGE: TooLarge(),
}


def ending_of(*, exit_code: int, verdict: Verdict | None, stop_reason: StopReason | None) -> Ending:
    if stop_reason is StopReason.CANCEL:
        return Cancelled()
    if verdict is not None:
        return Finished(verdict)
    if stop_reason in _STOPPED:
        return _STOPPED[stop_reason]
    if exit_code == OUT_OF_MEMORY_EXIT:
        return OutOfMemory()
    if exit_code == STORAGE_DOWN_EXIT:
        return StorageDown()
    return Died(exit_code)


class Exit(TypedDict):
    """What an attempt is remembered by (`service.jobs.attempts`)."""

    reason: ExitReason
    exit_code: int | None
    error_code: str | None


def exit_of(ending: Ending) -> Exit:
    match ending:
        case Finished(verdict=Failed(code=code)):
            return Exit(reason=ExitReason.FAILED, exit_code=None, error_code=code)
        case Finished():
            return Exit(reason=ExitReason.PUBLISHED, exit_code=None, error_code=None)
        case Died(exit_code=exit_code):
            return Exit(reason=ExitReason.DIED, exit_code=exit_code, error_code=None)
        case OutOfMemory():
            return Exit(
                reason=ExitReason.OUT_OF_MEMORY, exit_code=OUT_OF_MEMORY_EXIT, error_code="out_of_memory"
            )
    reason = _REASONS[type(ending)]
    return Exit(reason=reason, exit_code=None, error_code=None)


_REASONS: dict[type[Ending], ExitReason] = {
    Cancelled: ExitReason.CANCELLED,
    Paused: ExitReason.PAUSED,
    Drained: ExitReason.DRAINED,
    DeadlineExceeded: ExitReason.DEADLINE,
    StorageDown: ExitReason.STORAGE_DOWN,
    ScratchFull: ExitReason.SCRATCH_FULL,
    TooLarge: ExitReason.TOO_LARGE,
}
