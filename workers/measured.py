"""A job's record that also counts what it writes, and says when each stage was as a span of the job's trace.

The child itself is not asked: it knows neither a collector nor a database (docs/decisions/0005), and how long
its stages took is known here.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from service.jobs.lease import StopRequest
from service.jobs.results import ResultFile
from service.jobs.states import Stage, next_stage
from service.tracing import Tracer, current_traceparent
from workers.child import BaseOf
from workers.endings import Ending, Finished
from workers.messages import AnyMessage, Failed, ProgressMade, Published, StageFinished
from workers.metrics import WorkerMetrics, outcome_of
from workers.record import JobRecord


class MeasuredRecord(JobRecord):
    """`trains` is false for a job that takes over tokens that another one trained. Counts only what was
    written: a lost lease counts nothing."""

    def __init__(
        self,
        *arguments: Any,
        stage: Stage,
        trains: bool,
        metrics: WorkerMetrics,
        tracer: Tracer,
        **keywords: Any,
    ) -> None:
        super().__init__(*arguments, **keywords)
        self._stage: Stage | None = stage
        self._trains = trains
        self._metrics = metrics
        self._tracer = tracer
        self._stage_began_at = time.time()
        self._counted_at = time.monotonic()

    def begin_child(self) -> None:
        """A child starts now: time from here on counts."""
        self._stage_began_at = time.time()
        self._counted_at = time.monotonic()

    def count_start(self, base: BaseOf) -> None:
        """Of a child, once it is known how it came by its base."""
        self._metrics.child_started(base)

    def heartbeat(self, progress: ProgressMade | None = None) -> StopRequest | None:
        asked = super().heartbeat(progress)
        self._count_time()
        return asked

    def apply(self, message: AnyMessage) -> None:
        super().apply(message)
        if isinstance(message, StageFinished):
            if message.stage is Stage.TRAIN and self._trains:
                self._metrics.trained(int(message.output.get("trained_tokens", 0)))
            self._end_stage(message.stage)
            self._stage = next_stage(message.stage)

    def conclude(self, ending: Ending, *, log_tail: str, result_files: Sequence[ResultFile] = ()) -> bool:
        over = super().conclude(ending, log_tail=log_tail, result_files=result_files)
        assert self.concluded_as is not None
        outcome = outcome_of(self.concluded_as)
        verdict = ending.verdict if isinstance(ending, Finished) else None
        if outcome == "succeeded":
            self._end_stage(Stage.PUBLISH)
            self._stage = None
        self.end_child(outcome)
        if isinstance(verdict, Published | Failed) and verdict.safety_report is not None:
            self._metrics.measured(verdict.safety_report)
        return over

    def end_child(self, outcome: str) -> None:
        """A child ended; within a stage, unless it succeeded."""
        self._count_time()
        self._metrics.attempt_ended(outcome)
        if self._stage is not None:
            self._span(self._stage, ended_at=time.time(), failed_because=outcome)

    def _end_stage(self, stage: Stage) -> None:
        now = time.time()
        self._metrics.stage_finished(stage, max(0.0, now - self._stage_began_at))
        self._span(stage, ended_at=now)
        self._stage_began_at = now

    def _span(self, stage: Stage, *, ended_at: float, failed_because: str | None = None) -> None:
        self._tracer.record(
            f"stage {stage.value}",
            parent=current_traceparent(),
            began_at=self._stage_began_at,
            ended_at=ended_at,
            failed_because=failed_because,
            attributes={"autoclave.job.id": self._claim.job_id, "autoclave.stage": stage.value},
        )

    def _count_time(self) -> None:
        now = time.monotonic()
        self._metrics.ran(now - self._counted_at)
        self._counted_at = now
