"""The states that the event log of a job tells of, read as its owner would: from the texts."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from chaos.end_state import Event
from service.jobs.states import FIRST, TRANSITIONS, Stage, State, Status

_STARTED = ("Fine-tuning job started", "Fine-tuning job resumed at stage ")
_ENDS = {
    "The job has successfully completed": Status.SUCCEEDED,
    "The job was cancelled": Status.CANCELLED,
    "The job failed:": Status.FAILED,
    "The job was paused": Status.PAUSED,
    "Back in the queue:": Status.QUEUED,
    "The job was resumed, back in the queue": Status.QUEUED,
    "Files validated, moving job to queued state": Status.QUEUED,
}


def states_of(events: Sequence[Event]) -> list[State]:
    """In order. Texts that tell of no change of state are passed over."""
    states: list[State] = []
    for event in events:
        text = event.message
        if text.startswith("Created fine-tuning job: "):
            states.append(FIRST)
        elif text.startswith(_STARTED) or (text.startswith("Stage ") and text.endswith(" started")):
            states.append((Status.RUNNING, Stage(event.data["stage"])))
        else:
            status = next((status for start, status in _ENDS.items() if text.startswith(start)), None)
            if status is not None and states:
                states.append((status, states[-1][1]))
    return states


def wrong_steps(states: Sequence[State]) -> list[str]:
    """Where the path leaves the transition table."""
    wrong = [] if states[:1] == [FIRST] else [f"begins at {_shown(states[0]) if states else 'nothing'}"]
    for before, after in pairwise(states):
        if after not in TRANSITIONS.get(before, frozenset()):
            wrong.append(f"{_shown(before)} -> {_shown(after)}")
    return wrong


def _shown(state: State) -> str:
    return f"{state[0].value}/{state[1].value}"
