"""Which faults there are, and in which order a seed brings them. Pure: the same numbers give the same plan.

What a fault meets differs from run to run, because processes are not steps of one; what is injected, where,
for how long and in which order does not.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

STAGES = ("prepare", "train", "sanitize", "evaluate", "publish")
WAITING = "queued"
STAGELESS = ""


@dataclass(frozen=True)
class Fault:
    number: int
    kind: str
    stage: str
    """Of the job that it hits; "" where it hits no job, "queued" where the job waits."""
    seconds: float
    """How long it lasts, where it lasts."""
    target: int
    """Which of several processes, modulo their number."""
    after_jobs: int
    """It comes once so many jobs have ended."""

    @property
    def label(self) -> str:
        return f"{self.kind} ({self.stage})" if self.stage else self.kind


# Kind -> the stages in which a round brings it once each, and the seconds it may last.
KINDS: dict[str, tuple[tuple[str, ...], tuple[float, float]]] = {
    "kill child": (STAGES, (0.0, 0.0)),
    "kill worker": (STAGES, (0.0, 0.0)),
    "kill worker before it concludes": ((STAGELESS,), (0.0, 0.0)),
    "kill worker after it concluded": ((STAGELESS,), (0.0, 0.0)),
    "drain worker": (("train", "evaluate"), (0.0, 0.0)),
    "stop worker past its lease": (("train", "sanitize", "publish"), (0.0, 0.0)),
    "stop worker and child past its lease": (("train", "publish"), (0.0, 0.0)),
    "cancel a child that hangs": (("train",), (0.0, 0.0)),
    "kill api": ((STAGELESS,), (0.0, 0.0)),
    "kill api between commit and answer": ((STAGELESS,) * 2, (0.0, 0.0)),
    "kill maintenance": ((STAGELESS,), (0.0, 0.0)),
    "kill maintenance between commit and publish": ((STAGELESS,), (0.0, 0.0)),
    "kill maintenance between send and note": ((STAGELESS,), (0.0, 0.0)),
    "restart broker": ((STAGELESS,), (0.5, 4.0)),
    "wipe broker": ((STAGELESS,), (0.5, 4.0)),
    "lose messages": ((STAGELESS,), (2.0, 6.0)),
    "duplicate messages": ((STAGELESS,), (0.0, 0.0)),
    "restart database": ((STAGELESS,), (0.0, 2.0)),
    "crash database": ((STAGELESS,), (0.5, 4.0)),
    "storage errors": ((STAGELESS,) * 2, (8.0, 20.0)),
    "storage outage": ((STAGELESS,), (6.0, 12.0)),
    "slow storage": ((STAGELESS,), (8.0, 20.0)),
    "full disk": ((STAGELESS,), (8.0, 20.0)),
    "clock jump of a worker": ((STAGELESS,), (4.0, 10.0)),
    "clock jump of maintenance": ((STAGELESS,), (4.0, 8.0)),
    "clock jump of the api": ((STAGELESS,), (4.0, 10.0)),
    "cancel": ((WAITING, *STAGES), (0.0, 0.0)),
    "pause and resume": ((WAITING, *STAGES), (0.5, 4.0)),
}


def plan(*, seed: int, num_faults: int, num_jobs: int) -> list[Fault]:
    """Rounds of every kind in every stage, each round in an order of its own; the last one may be cut.
    The faults are spread over the jobs, none after the last twentieth of them."""
    rng = random.Random(seed)  # noqa: S311 - a plan, no secret
    chosen: list[tuple[str, str, float, int]] = []
    while len(chosen) < num_faults:
        one_round = [(kind, stage) for kind, (stages, _) in KINDS.items() for stage in stages]
        rng.shuffle(one_round)
        for kind, stage in one_round:
            shortest, longest = KINDS[kind][1]
            chosen.append((kind, stage, round(rng.uniform(shortest, longest), 1), rng.randrange(1000)))
    last = 0.95 * num_jobs
    return [
        Fault(number, kind, stage, seconds, target, after_jobs=int(last * number / num_faults))
        for number, (kind, stage, seconds, target) in enumerate(chosen[:num_faults])
    ]
