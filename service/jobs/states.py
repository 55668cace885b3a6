"""What a job can be, and what it can become: plain data.

A state is a pair (status, stage). On the wire the statuses are OpenAI's six, a client in strict mode
accepts no other; `paused` is ours and shown as `queued` with the stage "paused". The stages are ours.
Sanitising and evaluating are mandatory by construction: the only edge into `succeeded` starts at
(running, publish), and a stage is entered only from the one before it.
`tests/service/jobs/test_states.py` enumerates the paths.
"""

from __future__ import annotations

from enum import StrEnum


class Status(StrEnum):
    VALIDATING_FILES = "validating_files"
    QUEUED = "queued"
    PAUSED = "paused"
    """Waits, but nobody may claim it; never on the wire (`on_the_wire`)."""
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Stage(StrEnum):
    PREPARE = "prepare"
    TRAIN = "train"
    SANITIZE = "sanitize"
    EVALUATE = "evaluate"
    PUBLISH = "publish"


State = tuple[Status, Stage]

STAGES: tuple[Stage, ...] = tuple(Stage)
TERMINAL: frozenset[Status] = frozenset({Status.SUCCEEDED, Status.FAILED, Status.CANCELLED})
FIRST: State = (Status.VALIDATING_FILES, Stage.PREPARE)


def on_the_wire(status: str, stage: str) -> tuple[str, str]:
    """What clients see as `status` and `stage`."""
    return (Status.QUEUED.value, "paused") if status == Status.PAUSED.value else (status, stage)


def from_the_wire(shown: str) -> tuple[str, ...]:
    """The statuses that clients see as `shown`; "paused" is those of them that are paused."""
    return ("queued", "paused") if shown == Status.QUEUED.value else (shown,)


def next_stage(stage: Stage) -> Stage | None:
    position = STAGES.index(stage)
    return STAGES[position + 1] if position + 1 < len(STAGES) else None


def _transitions() -> dict[State, frozenset[State]]:
    table: dict[State, frozenset[State]] = {
        FIRST: frozenset(
            {
                (Status.QUEUED, Stage.PREPARE),
                (Status.FAILED, Stage.PREPARE),
                (Status.CANCELLED, Stage.PREPARE),
            }
        )
    }
    for stage in STAGES:
        ends = {(Status.FAILED, stage), (Status.CANCELLED, stage)}
        table[(Status.QUEUED, stage)] = frozenset({(Status.RUNNING, stage), (Status.PAUSED, stage), *ends})
        table[(Status.PAUSED, stage)] = frozenset({(Status.QUEUED, stage), *ends})
        # Back to the queue: the worker was lost or drained; the next one goes on at this stage.
        onward: set[State] = {(Status.QUEUED, stage), (Status.PAUSED, stage), *ends}
        following = next_stage(stage)
        onward.add((Status.RUNNING, following) if following else (Status.SUCCEEDED, stage))
        table[(Status.RUNNING, stage)] = frozenset(onward)
    return table


TRANSITIONS: dict[State, frozenset[State]] = _transitions()
