"""What a child tells its supervisor: one JSON object per line on a pipe, typed at both ends.

The child knows no database. Everything it learns becomes one of these messages, and the supervisor
turns it into a write that carries the fencing number.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from service.adapters.package_file import PackageFile
from service.jobs.states import Stage


class Message(msgspec.Struct, frozen=True, kw_only=True, tag_field="type"):
    pass


class ProgressMade(Message, frozen=True, kw_only=True, tag="progress"):
    """Where the current stage stands; only the newest counts."""

    step: int
    total_steps: int
    loss: float | None = None
    learning_rate: float | None = None
    tokens_per_second: float | None = None
    seconds_remaining: float | None = None


class MetricsMeasured(Message, frozen=True, kw_only=True, tag="metrics"):
    """One point of the training curve; becomes a `metrics` event."""

    step: int
    total_steps: int
    train_loss: float
    valid_loss: float | None = None
    train_mean_token_accuracy: float | None = None
    valid_mean_token_accuracy: float | None = None


class StepsMeasured(Message, frozen=True, kw_only=True, tag="steps"):
    """Consecutive points of the training curve, every step of it; the lists are equally long, except that
    one of the last three is empty where it was measured at none of the steps."""

    first_step: int
    train_loss: list[float | None]
    learning_rate: list[float | None]
    tokens_per_second: list[float | None]
    valid_loss: list[float | None] = []
    train_mean_token_accuracy: list[float | None] = []
    valid_mean_token_accuracy: list[float | None] = []


class Noted(Message, frozen=True, kw_only=True, tag="note"):
    """A sentence for the job's owner; becomes a `message` event."""

    text: str
    level: Literal["info", "warn", "error"] = "info"
    data: dict[str, Any] | None = None


class Checkpointed(Message, frozen=True, kw_only=True, tag="checkpoint"):
    """A resume checkpoint lies complete below `prefix`."""

    prefix: str
    step: int


class MemoryEstimated(Message, frozen=True, kw_only=True, tag="memory"):
    """What the job needs of the device, by `autoclave.memory`."""

    num_bytes: int


class AdapterKept(Message, frozen=True, kw_only=True, tag="adapter_kept"):
    """The adapter as it is at the end of an epoch lies complete below `prefix`. `figures` are what the train
    stage would say, had it ended here."""

    prefix: str
    step: int
    adapter_sha256: str
    metrics: dict[str, float | None]
    figures: dict[str, Any]


class StageFinished(Message, frozen=True, kw_only=True, tag="stage_finished"):
    """The stage's output is stored; `output` is what a later attempt needs to go on after it.
    `safety_report` is what the job's owner may read from now on, however the job ends."""

    stage: Stage
    output: dict[str, Any]
    safety_report: dict[str, Any] | None = None


class Published(Message, frozen=True, kw_only=True, tag="published"):
    """The adapter is stored. It leaves only when the supervisor releases it."""

    storage_key: str
    num_bytes: int
    sha256: str
    safety_report: dict[str, Any]
    files: list[PackageFile] = []
    signing_public_key: str | None = None
    """PEM; None if this server signs nothing."""


class Failed(Message, frozen=True, kw_only=True, tag="failed"):
    """The job cannot succeed, however often it is tried. `safety_report` only if one was made."""

    code: str
    message: str
    param: str | None = None
    safety_report: dict[str, Any] | None = None


class BasePrepared(Message, frozen=True, kw_only=True, tag="base_prepared"):
    """A base was checked and measured and can be registered (`workers.bases.adding.PreparedBase`)."""

    folder: str
    revision: str
    sha256: str
    alignment_method: str
    measurements: dict[str, Any]
    safety_profile: dict[str, Any]


AnyMessage = (
    ProgressMade
    | MetricsMeasured
    | StepsMeasured
    | Noted
    | Checkpointed
    | MemoryEstimated
    | AdapterKept
    | StageFinished
    | Published
    | Failed
    | BasePrepared
)
Verdict = Published | Failed | BasePrepared

_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[AnyMessage] = msgspec.json.Decoder(AnyMessage)


def encode(message: AnyMessage) -> bytes:
    """One line. Non-finite floats become null (JSON has none)."""
    return _encoder.encode(message) + b"\n"


def decode(line: bytes) -> AnyMessage:
    """Raises msgspec.DecodeError for anything that `encode` did not write."""
    return _decoder.decode(line)
