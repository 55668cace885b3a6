"""When to send which signal to a child that should stop: flag, then SIGTERM, then SIGKILL. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class Step(StrEnum):
    TERMINATE = "terminate"
    KILL = "kill"


@dataclass
class Escalation:
    """Begun at `since` (monotonic seconds), the moment the flag was set. `flag_seconds` may be 0."""

    since: float
    flag_seconds: float
    terminate_seconds: float
    _taken: set[Step] = field(default_factory=set)

    def due(self, now: float) -> Step | None:
        """The step to take now. Each is returned once, in order."""
        waited = now - self.since
        if waited >= self.flag_seconds and Step.TERMINATE not in self._taken:
            self._taken.add(Step.TERMINATE)
            return Step.TERMINATE
        if waited >= self.flag_seconds + self.terminate_seconds and Step.KILL not in self._taken:
            self._taken.add(Step.KILL)
            return Step.KILL
        return None
