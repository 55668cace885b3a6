"""What the page of one job shows, worked out of its rows. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from autoclave.spec import JobSpec
from service.checkpoints.kept import GATE_FAILED
from service.dashboard import job_words
from service.dashboard.queries.job_page import Position
from service.jobs.error_kinds import error_kind
from service.jobs.repository import JobView
from service.jobs.states import STAGES, TERMINAL, Stage, Status
from service.models import Job
from service.scheduling.waiting import Reason

QUEUE_BEAT_SECONDS = 20.0
"""A place in the queue changes without the job: a waiting job's page looks at it this often."""

Deed = Literal["cancel", "pause", "resume", "retry"]


@dataclass(frozen=True)
class StageView:
    """`state` is done, now, failed, stopped or waiting; `seconds` so far, or None."""

    name: str
    state: str
    seconds: float | None


@dataclass(frozen=True)
class Figure:
    """`value` is text; `moment` a time since the epoch beside it."""

    label: str
    value: Any
    kind: Literal["number", "duration", "when", "loss"] = "number"


@dataclass(frozen=True)
class Summary:
    """What changes while one watches."""

    version: str
    live: bool
    status: str
    words: str
    stages: list[StageView]
    step: int | None
    total_steps: int | None
    figures: list[Figure]
    waiting: str | None
    """Why nothing happens."""
    asked: str | None
    """What was asked for and has not happened yet."""
    error: str | None
    turn: str | None
    """Whose turn it is after the error."""

    @property
    def percent(self) -> int | None:
        if self.step is None or not self.total_steps:
            return None
        return min(100, 100 * self.step // self.total_steps)


def version_of(position: Position, *, now: float) -> str:
    waits = position.status == Status.QUEUED.value
    beat = int(now // QUEUE_BEAT_SECONDS) if waits else 0
    step = "" if position.step is None else position.step
    return (
        f"{position.status}.{position.stage}.{position.fencing_number}.{step}.{position.asked}."
        f"{beat}.{position.newest_event}"
    )


def seen_event(version: str) -> int | None:
    """The newest event that whoever has this version knows; None if it is no version of ours."""
    last = version.rpartition(".")[2]
    plain = version.count(".") == 6 and last.isascii() and last.isdecimal() and len(last) < 19
    return int(last) if plain else None


def summary(
    view: JobView,
    position: Position,
    *,
    for_operator: bool,
    now: float,
) -> Summary:
    job = view.job
    status = Status(job.status)
    progress = job.progress or {}
    return Summary(
        version=version_of(position, now=now),
        live=status not in TERMINAL,
        status=status.value,
        words=job_words.STATUSES[status],
        stages=_stages(job, now=now),
        step=progress.get("step"),
        total_steps=progress.get("total_steps"),
        figures=_figures(job, progress, now=now),
        waiting=_waiting(view),
        asked=_asked(job),
        error=None if job.error_code is None else job.error_message or job.error_code,
        turn=_turn(job, for_operator=for_operator),
    )


def _stages(job: Job, *, now: float) -> list[StageView]:
    took, status = job.stage_seconds or {}, Status(job.status)
    at = STAGES.index(Stage(job.stage))
    shown = []
    for index, stage in enumerate(STAGES):
        seconds = took.get(stage.value)
        if index < at or status is Status.SUCCEEDED:
            state = "done"
        elif index > at:
            state = "waiting"
        else:
            state = {
                Status.RUNNING: "now",
                Status.FAILED: "failed",
                Status.CANCELLED: "stopped",
                Status.PAUSED: "stopped",
            }.get(status, "waiting")
            # A cancelled one may have waited since.
            if job.stage_began_at is not None and status in (Status.RUNNING, Status.FAILED):
                seconds = (job.finished_at or now) - job.stage_began_at
        shown.append(StageView(job_words.STAGES[stage], state, seconds))
    return shown


def _figures(job: Job, progress: Mapping[str, Any], *, now: float) -> list[Figure]:
    """Always four of them: nothing moves when a job ends."""
    trained = (job.stage_outputs or {}).get(Stage.TRAIN.value) or {}
    if Status(job.status) in TERMINAL:
        ran = None if job.started_at is None or job.finished_at is None else job.finished_at - job.started_at
        return [
            Figure("from start to end", ran, "duration"),
            Figure("tokens trained", job.trained_tokens),
            Figure("last training loss", trained.get("final_loss"), "loss"),
            Figure("attempts", job.attempt_count),
        ]
    loss = progress.get("loss")
    left = None if job.estimated_finish_at is None else max(0.0, job.estimated_finish_at - now)
    since = job.started_at
    return [
        Figure("left, as estimated", _coarse(left), "duration"),
        Figure("tokens per second", progress.get("tokens_per_second")),
        Figure("training loss", trained.get("final_loss") if loss is None else loss, "loss"),
        Figure("since it started", _coarse(None if since is None else now - since), "duration"),
    ]


def _coarse(seconds: float | None) -> float | None:
    """Whole minutes, where seconds say nothing."""
    return seconds if seconds is None or seconds < 600 else 60.0 * round(seconds / 60)


def _waiting(view: JobView) -> str | None:
    job = view.job
    if job.status != Status.QUEUED.value:
        return _NOT_RUNNING.get(job.status)
    if view.wait is not None and view.wait.reason is not Reason.TURN:
        return view.wait.message
    if view.queue_position is None:
        return "In the queue, behind more than a thousand jobs."
    if view.queue_position == 1:
        return "Next in the queue: it starts as soon as a worker is free."
    return f"In the queue at place {view.queue_position:,}."


_NOT_RUNNING = {
    Status.PAUSED.value: "Paused. It keeps what it has done and waits until it is resumed.",
    Status.VALIDATING_FILES.value: "Its files are being checked.",
}


def _asked(job: Job) -> str | None:
    if Status(job.status) is not Status.RUNNING:
        return None
    if job.cancel_requested_at is not None:
        return "It was asked to stop and ends at its next step."
    if job.pause_requested_at is not None:
        return "It was asked to pause and stops at its next step."
    return None


def _turn(job: Job, *, for_operator: bool) -> str | None:
    if job.error_code is None:
        return None
    kinds = job_words.TURNS_FOR_OPERATORS if for_operator else job_words.TURNS
    if job.error_code == GATE_FAILED:
        return "The safety report below says what was measured and why the adapter may not leave."
    return kinds[error_kind(job.error_code)]


def deeds(job: Job) -> list[Deed]:
    """What can be done with a job now, most likely first."""
    status = Status(job.status)
    found: list[Deed] = []
    if status is Status.PAUSED or (status is Status.RUNNING and job.pause_requested_at is not None):
        found.append("resume")
    elif status in (Status.QUEUED, Status.RUNNING) and job.cancel_requested_at is None:
        found.append("pause")
    if status not in TERMINAL and (status is not Status.RUNNING or job.cancel_requested_at is None):
        found.append("cancel")
    return [*found, "retry"]


def is_releasable(job: Job) -> bool:
    """Whether an operator may waive the gate."""
    return job.status == Status.FAILED.value and job.error_code == GATE_FAILED


@dataclass(frozen=True)
class Setting:
    name: str
    value: str
    default: str
    changed: bool


def settings_of(job: Job, base_default: Mapping[str, Any]) -> list[Setting]:
    """Hyper-parameters beside what "auto" means on this base today. Stored specs may be older than fields."""
    known = JobSpec.model_validate(dict(base_default)).model_dump(mode="json")
    plain = JobSpec().model_dump(mode="json")
    shown = []
    for name, words in job_words.FIELDS.items():
        if name == "defence":
            values = job.spec.get(name, plain[name]), known[name]
            texts = job_words.defence(values[0]), job_words.defence(values[1])
        else:
            block = "train" if name in plain["train"] else "lora"
            value = job.spec.get(block, {}).get(name, plain[block][name])
            texts = job_words.setting(value), job_words.setting(known[block][name])
        shown.append(Setting(words, *texts, changed=texts[0] != texts[1]))
    return shown


def dataset_figures(job: Job, *, max_seq_length: int | None) -> list[tuple[str, int]]:
    """What was counted in the training file when the job began; empty until then."""
    prepared = (job.stage_outputs or {}).get(Stage.PREPARE.value) or {}
    epochs = job.spec.get("train", {}).get("n_epochs")
    tokens = prepared.get("num_tokens")
    longest = "the longest allowed length" if max_seq_length is None else f"{max_seq_length:,} tokens"
    figures = [
        ("Conversations", prepared.get("num_conversations")),
        ("Examples trained on", prepared.get("num_examples")),
        ("Tokens per epoch", tokens),
        ("Tokens in all epochs", tokens * epochs if tokens and epochs else None),
        (f"Cut at {longest}", prepared.get("num_truncated")),
        ("Left out, nothing to train", prepared.get("num_dropped")),
    ]
    return [(name, value) for name, value in figures if value is not None]
