"""Jobs and events on the wire: OpenAI's fields with OpenAI's types, then ours.

Explicit, so that a new column never shows by itself: paths, profiles and logs stay inside.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Literal

from pydantic import BaseModel

from service.jobs.defence import shown_defence
from service.jobs.error_kinds import ErrorKind, error_kind
from service.jobs.metrics import Point
from service.jobs.repository import JobView
from service.jobs.states import Stage, Status, on_the_wire
from service.jobs.training import shown_training, training_result
from service.models import Job, JobEvent
from service.scheduling.waiting import Reason


class JobError(BaseModel):
    code: str
    message: str
    param: str | None


class Base(BaseModel):
    """The exact base the adapter belongs to."""

    model: str
    revision: str
    sha256: str


class GateWaiver(BaseModel):
    reason: str
    at: int


class WaitingFor(BaseModel):
    reason: Reason
    message: str


class JobObject(BaseModel):
    id: str
    object: Literal["fine_tuning.job"] = "fine_tuning.job"
    created_at: int
    error: JobError | None
    estimated_finish: int | None
    fine_tuned_model: str | None
    finished_at: int | None
    hyperparameters: dict[str, Any]
    integrations: list[dict[str, Any]]
    metadata: dict[str, str] | None
    method: dict[str, Any]
    model: str
    organization_id: str
    result_files: list[str]
    seed: int
    status: str
    trained_tokens: int | None
    training_file: str
    user_provided_suffix: str | None
    validation_file: str | None

    # Extensions.
    stage: str
    progress: dict[str, Any] | None
    """Of the current stage: step, total_steps, loss, seconds_remaining, ..."""
    queue_position: int | None
    """1 is next; of a queued job among the first thousand."""
    waiting_for: WaitingFor | None
    """Of a queued job."""
    attempts: int
    cancel_requested: bool
    """A running job was asked to stop; its status stays `running` until its process is gone."""
    pause_requested: bool
    """A running job was asked to pause; its stage is `paused` when its process is gone."""
    paused_at: str | None
    """The stage at which a paused job goes on."""
    error_kind: ErrorKind | None
    """Who can do something about `error`: user, operator or system. Null without an error."""
    cloned_from: str | None
    """The job that this one was made from by `retry`, or by a release."""
    from_checkpoint: str | None
    """The checkpoint that this job releases: it trains nothing."""
    gate_waived: GateWaiver | None
    """An operator lets the adapter leave although it may miss the safety gate."""
    base: Base
    lora: dict[str, Any]
    adapter_expires_at: int | None
    """When the released adapter is deleted; null: never, or there is none."""
    adapter_deleted_at: int | None
    """When its owner deleted it, or its time was over."""
    training: dict[str, Any]
    """How it is trained: the fields of `training` in a request, with what "auto" became."""
    defence: dict[str, Any]
    """What training minimises: `name`, and the settings of a method other than "sft"."""
    training_result: dict[str, Any] | None
    """Once trained: `service.jobs.training.RESULT_FIELDS`."""
    safety: dict[str, Any] | None
    """`summary` of the safety report: strength, and the rates of base, before and after."""

    @classmethod
    def of(cls, view: JobView) -> JobObject:
        job = view.job
        status, stage = on_the_wire(job.status, job.stage)
        return cls(
            id=job.id,
            created_at=int(job.created_at),
            error=_error(job),
            estimated_finish=_estimated_finish(job),
            fine_tuned_model=view.fine_tuned_model,
            finished_at=None if job.finished_at is None else int(job.finished_at),
            hyperparameters=job.hyperparameters,
            integrations=job.integrations or [],
            metadata=job.user_metadata,
            method=job.method,
            model=job.base_id,
            organization_id=job.organization_id,
            result_files=job.result_file_ids or [],
            seed=job.seed,
            status=status,
            trained_tokens=job.trained_tokens,
            training_file=job.training_file_id,
            user_provided_suffix=job.suffix,
            validation_file=job.validation_file_id,
            stage=stage,
            progress=job.progress,
            queue_position=view.queue_position,
            waiting_for=None if view.wait is None else WaitingFor.model_validate(asdict(view.wait)),
            attempts=job.attempt_count,
            cancel_requested=job.cancel_requested_at is not None,
            pause_requested=job.pause_requested_at is not None,
            paused_at=job.stage if job.status == Status.PAUSED.value else None,
            error_kind=None if job.error_code is None else error_kind(job.error_code),
            cloned_from=job.cloned_from,
            from_checkpoint=job.from_checkpoint,
            gate_waived=None if job.gate_waived is None else GateWaiver.model_validate(job.gate_waived),
            base=Base(model=job.base_id, revision=view.base_revision, sha256=job.base_sha256),
            lora=job.spec["lora"],
            adapter_expires_at=None if view.adapter_expires_at is None else int(view.adapter_expires_at),
            adapter_deleted_at=None if view.adapter_deleted_at is None else int(view.adapter_deleted_at),
            training=shown_training(job.spec["train"]),
            defence=shown_defence(job.spec),
            training_result=training_result(job.stage_outputs.get(Stage.TRAIN.value)),
            safety=None if job.safety_report is None else job.safety_report.get("summary"),
        )


def _error(job: Job) -> JobError | None:
    # Null and not an empty object: OpenAI's strict client refuses the latter.
    if job.error_code is None:
        return None
    return JobError(code=job.error_code, message=job.error_message or "", param=job.error_param)


def _estimated_finish(job: Job) -> int | None:
    at = job.estimated_finish_at
    return None if at is None else math.ceil(at)


class JobList(BaseModel):
    object: Literal["list"] = "list"
    data: list[JobObject]
    has_more: bool


class EventObject(BaseModel):
    id: str
    object: Literal["fine_tuning.job.event"] = "fine_tuning.job.event"
    created_at: int
    level: Literal["info", "warn", "error"]
    message: str
    type: Literal["message", "metrics"]
    data: dict[str, Any]
    """Empty rather than null: OpenAI's specification knows an object only."""

    @classmethod
    def of(cls, event: JobEvent) -> EventObject:
        return cls.model_validate(
            {
                "id": event.id,
                "created_at": int(event.created_at),
                "level": event.level,
                "message": event.message,
                "type": event.type,
                "data": event.data or {},
            }
        )


class EventList(BaseModel):
    object: Literal["list"] = "list"
    data: list[EventObject]
    has_more: bool


class MetricsPoint(BaseModel):
    step: int
    train_loss: float | None
    learning_rate: float | None
    tokens_per_second: float | None
    valid_loss: float | None
    train_mean_token_accuracy: float | None
    valid_mean_token_accuracy: float | None


class MetricsList(BaseModel):
    object: Literal["list"] = "list"
    job_id: str
    num_steps: int
    """How many steps were measured, before `max_points`."""
    data: list[MetricsPoint]

    @classmethod
    def of(cls, job_id: str, points: Sequence[Point], *, num_steps: int) -> MetricsList:
        return cls(
            job_id=job_id, num_steps=num_steps, data=[MetricsPoint(**asdict(point)) for point in points]
        )
