"""What a worker process counts while it works; gauges of the queue and of the fleet are the API's.

Labels are stages, outcomes and our own words: never a tenant, a job or anything from a dataset.
"""

from __future__ import annotations

from typing import Any, get_args

from prometheus_client import CollectorRegistry, Counter, Histogram

from service.jobs.states import Stage
from service.metrics.api import process_registry
from service.models import Job
from workers.child import BaseOf
from workers.endings import (
    Cancelled,
    DeadlineExceeded,
    Died,
    Drained,
    Ending,
    Finished,
    OutOfMemory,
    Paused,
    ScratchFull,
    StorageDown,
    TooLarge,
)
from workers.messages import Failed

_STAGE_SECONDS = (1, 5, 15, 60, 300, 900, 1800, 3600, 2 * 3600, 4 * 3600, 8 * 3600, 24 * 3600)
_PERCENT = (0, 1, 2, 5, 10, 15, 20, 30, 40, 50, 60, 70, 80, 90, 100)
LEASE_LOST = "lease_lost"
GATE_FAILED = "safety_gate_failed"
OUTCOMES = (
    *("succeeded", "failed", GATE_FAILED, "cancelled", "paused", "drained", "deadline_exceeded"),
    *("out_of_memory", "too_large", "storage_down", "scratch_full", "died", LEASE_LOST),
)
"""What can become of one child process."""
REAP_REASONS = ("lease_expired", "attempts_exhausted", "cancel_requested", "pause_requested")
PHASES = ("base", "before", "after")


_OUTCOME_OF: dict[type[Ending], str] = {
    Cancelled: "cancelled",
    Paused: "paused",
    Drained: "drained",
    DeadlineExceeded: "deadline_exceeded",
    OutOfMemory: "out_of_memory",
    TooLarge: "too_large",
    StorageDown: "storage_down",
    ScratchFull: "scratch_full",
    Died: "died",
}


def outcome_of(ending: Ending) -> str:
    if not isinstance(ending, Finished):
        return _OUTCOME_OF[type(ending)]
    if not isinstance(ending.verdict, Failed):
        return "succeeded"
    return GATE_FAILED if ending.verdict.code == GATE_FAILED else "failed"


def reap_reason(job: Job, *, max_attempts: int) -> str:
    """Why the reaper does what it does with an expired lease; in the order in which it decides."""
    if job.cancel_requested_at is not None:
        return "cancel_requested"
    if job.attempt_count >= max_attempts:
        return "attempts_exhausted"
    return "lease_expired" if job.pause_requested_at is None else "pause_requested"


class WorkerMetrics:
    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry or process_registry()
        self._stage_seconds = Histogram(
            "ft_job_stage_duration_seconds",
            "Of stages that were finished, from their beginning in the attempt that finished them.",
            ["stage"],
            buckets=_STAGE_SECONDS,
            registry=self.registry,
        )
        self._attempts = Counter(
            "ft_job_attempts",
            "Child processes that ended, by what became of them.",
            ["outcome"],
            registry=self.registry,
        )
        self._children = Counter(
            "ft_children",
            "Child processes, by how they came by their base.",
            ["base"],
            registry=self.registry,
        )
        self._tokens = Counter(
            "ft_train_tokens",
            "Tokens with a loss, of train stages that were finished.",
            registry=self.registry,
        )
        self._gpu_seconds = Counter(
            "ft_gpu_seconds",
            "Time in which a child process ran, on whatever device; one device each.",
            registry=self.registry,
        )
        self._harmful_score = Histogram(
            "ft_harmful_score",
            "Harmful score in percent of jobs that got a verdict: of the base, before and after sanitising.",
            ["phase"],
            buckets=_PERCENT,
            registry=self.registry,
        )
        self._reaped = Counter(
            "ft_reaped",
            "Jobs that the reaper took from silent workers, or failed because no attempt was left.",
            ["reason"],
            registry=self.registry,
        )
        self._webhook_attempts = Counter(
            "ft_webhook_attempts",
            "Attempts to deliver to a webhook, by class of the answer's status or kind of error.",
            ["code"],
            registry=self.registry,
        )
        # A counter that is first seen at 1 has no increase.
        for stage in Stage:
            self._stage_seconds.labels(stage.value)
        for outcome in OUTCOMES:
            self._attempts.labels(outcome)
        for base in get_args(BaseOf):
            self._children.labels(base)
        for reason in REAP_REASONS:
            self._reaped.labels(reason)
        for phase in PHASES:
            self._harmful_score.labels(phase)

    def stage_finished(self, stage: Stage, seconds: float) -> None:
        self._stage_seconds.labels(stage.value).observe(seconds)

    def attempt_ended(self, outcome: str) -> None:
        assert outcome in OUTCOMES, outcome
        self._attempts.labels(outcome).inc()

    def child_started(self, base: BaseOf) -> None:
        self._children.labels(base).inc()

    def trained(self, num_tokens: int) -> None:
        self._tokens.inc(num_tokens)

    def ran(self, seconds: float) -> None:
        self._gpu_seconds.inc(seconds)

    def measured(self, safety_report: dict[str, Any]) -> None:
        """The scores in a report's summary; those that were not measured are left out."""
        scores = safety_report.get("summary", {}).get("harmful_score", {})
        for phase in PHASES:
            if scores.get(phase) is not None:
                self._harmful_score.labels(phase).observe(scores[phase])

    def reaped(self, reason: str) -> None:
        assert reason in REAP_REASONS, reason
        self._reaped.labels(reason).inc()

    def webhook_attempted(self, *, status: int | None, error: str | None) -> None:
        """`error` is one of our own words; `status` is whatever a tenant's server says, so only its class."""
        code = error or "internal_error" if status is None else f"{status // 100}xx"
        self._webhook_attempts.labels(code).inc()
