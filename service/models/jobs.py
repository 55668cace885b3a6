"""Jobs, what is written while they run, and the doorbells that ring for them."""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, ForeignKey, Index, Integer, String, Text, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column

from service.models.base import Json, Table

_QUEUED, _RUNNING = (text(f"status = '{status}'") for status in ("queued", "running"))


class Job(Table):
    __tablename__ = "jobs"
    __table_args__ = (
        Index("ix_jobs_listing", "project_id", "created_at", "id"),
        Index("ix_jobs_listing_by_status", "project_id", "status", "created_at", "id"),
        Index("ix_jobs_listing_by_base", "project_id", "base_id", "created_at", "id"),
        Index("ix_jobs_leases", "status", "lease_expires_at"),
        Index("ix_jobs_queue", "status", "queued_at", "id"),
        Index("ix_jobs_history", "base_id", "status", "finished_at"),
        Index("ix_jobs_from_checkpoint", "from_checkpoint"),
        Index("ix_jobs_counts", "status", "stage"),
        # For operators: over all projects.
        Index("ix_jobs_all", "created_at", "id"),
        Index("ix_jobs_all_by_status", "status", "created_at", "id"),
        Index("ix_jobs_all_by_base", "base_id", "created_at", "id"),
        Index(
            "ix_jobs_turn", "project_id", "queued_at", "id", postgresql_where=_QUEUED, sqlite_where=_QUEUED
        ),
        Index("ix_jobs_running", "project_id", postgresql_where=_RUNNING, sqlite_where=_RUNNING),
        Index("ix_jobs_rung", "rung_at", postgresql_where=_QUEUED, sqlite_where=_QUEUED),
    )

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    organization_id: Mapped[str] = mapped_column(ForeignKey("organizations.id"))
    base_id: Mapped[str] = mapped_column(ForeignKey("aligned_bases.id"))
    base_sha256: Mapped[str] = mapped_column(String(64))
    training_file_id: Mapped[str] = mapped_column(ForeignKey("files.id"))
    validation_file_id: Mapped[str | None] = mapped_column(ForeignKey("files.id"))
    suffix: Mapped[str | None] = mapped_column(String(64))
    seed: Mapped[int] = mapped_column(BigInteger)
    method: Mapped[dict[str, Any]]
    """As the client sent it, or filled in; what the API shows."""
    hyperparameters: Mapped[dict[str, Any]]
    spec: Mapped[dict[str, Any]]
    """Resolved `JobSpec`: what the worker runs."""
    safety_profile: Mapped[dict[str, Any]]
    """The base's profile at creation: a later change of the base does not reach this job."""
    user_metadata: Mapped[dict[str, Any] | None] = mapped_column("metadata", Json)
    request: Mapped[dict[str, Any] | None]
    """As the client sent it: what a clone starts from. Null for jobs older than this column."""
    cloned_from: Mapped[str | None] = mapped_column(String(64))
    """The id of a job. No foreign key: SQLite cannot add one to a table that others refer to."""
    from_checkpoint: Mapped[str | None] = mapped_column(String(64))
    """The id of the checkpoint that this job releases. Its row may be gone; `starts_from` is not."""
    starts_from: Mapped[dict[str, Any] | None]
    """The kept adapter that stands for training (`service.checkpoints.kept.KeptAdapter`)."""
    gate_waived: Mapped[dict[str, Any] | None]
    """`{"reason", "at"}` of a job that an operator releases although it may miss the safety gate."""
    integrations: Mapped[list[Any] | None]
    model_id: Mapped[str | None] = mapped_column(String(512))
    """Name of the adapter, should it be released. Null for jobs older than this column."""
    created_at: Mapped[float]
    request_id: Mapped[str | None] = mapped_column(String(64))
    """Of the request that created it, as in the API's log."""
    traceparent: Mapped[str | None] = mapped_column(String(64))
    """W3C trace context of that request, where it was traced."""

    status: Mapped[str] = mapped_column(String(16))
    stage: Mapped[str] = mapped_column(String(16))
    started_at: Mapped[float | None]
    finished_at: Mapped[float | None]
    cancel_requested_at: Mapped[float | None]
    pause_requested_at: Mapped[float | None]
    """Set while a running job is asked to pause; null again once it is paused."""
    queued_at: Mapped[float | None]
    """When it last entered the queue: the order of the queue."""
    error_code: Mapped[str | None] = mapped_column(String(64))
    error_message: Mapped[str | None] = mapped_column(Text)
    error_param: Mapped[str | None] = mapped_column(String(64))

    lease_owner: Mapped[str | None] = mapped_column(String(255))
    lease_expires_at: Mapped[float | None]
    heartbeat_at: Mapped[float | None]
    """When the worker that holds or held it last said so."""
    fencing_number: Mapped[int] = mapped_column(BigInteger, default=0)
    attempt_count: Mapped[int] = mapped_column(Integer, default=0)
    rung_at: Mapped[float | None]
    """When a message for this job was last put into the outbox."""
    held_since: Mapped[float | None]
    """Not used since revision 0013; processes of an older version write it while they are replaced."""
    needed_memory_bytes: Mapped[int | None] = mapped_column(BigInteger)
    """Of the device, by `autoclave.memory`, as the worker that prepared it said; null: not known yet."""

    progress: Mapped[dict[str, Any] | None]
    progress_at: Mapped[float | None]
    """When a step was last made; with `stage_began_at` it says how long nothing has moved."""
    stage_began_at: Mapped[float | None]
    stage_seconds: Mapped[dict[str, Any] | None]
    """How long each finished stage took; what later jobs on the same base are estimated from."""
    estimated_finish_at: Mapped[float | None]
    stage_outputs: Mapped[dict[str, Any]] = mapped_column(Json, default=dict)
    """Completion marker per stage, written with the fencing number: what a resuming attempt trusts."""
    checkpoint: Mapped[dict[str, Any] | None]
    trained_tokens: Mapped[int | None] = mapped_column(BigInteger)
    safety_report: Mapped[dict[str, Any] | None]
    result_file_ids: Mapped[list[Any] | None]
    log_tail: Mapped[str | None] = mapped_column(Text)
    """Last lines of the child's log, for operators; never shown to tenants."""


class JobEvent(Table):
    __tablename__ = "job_events"
    __table_args__ = (Index("ix_job_events_listing", "job_id", "sequence"),)

    sequence: Mapped[int] = mapped_column(
        BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True
    )
    id: Mapped[str] = mapped_column(String(64), unique=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    created_at: Mapped[float]
    level: Mapped[str] = mapped_column(String(8))
    type: Mapped[str] = mapped_column(String(16))
    message: Mapped[str] = mapped_column(Text)
    data: Mapped[dict[str, Any] | None]


class JobMetrics(Table):
    """Consecutive training steps in one row, packed (`service.jobs.metrics`): a row per step would cost
    ten times the space. A later row wins over an earlier one for the same step: the step was repeated."""

    __tablename__ = "job_metrics"
    __table_args__ = (Index("ix_job_metrics_listing", "job_id", "sequence"),)

    sequence: Mapped[int] = mapped_column(
        BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True
    )
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    first_step: Mapped[int]
    num_steps: Mapped[int]
    figures: Mapped[bytes]


class JobCheckpoint(Table):
    """The adapter as it was at the end of an epoch, unsanitised: below `prefix` in the private storage, where
    no route reads. It leaves only as the adapter of a job that starts from it."""

    __tablename__ = "job_checkpoints"
    __table_args__ = (UniqueConstraint("job_id", "step_number"),)

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    step_number: Mapped[int]
    created_at: Mapped[float]
    model_id: Mapped[str] = mapped_column(String(512))
    """`ft:...:ckpt-step-<n>`: its name, once released."""
    metrics: Mapped[dict[str, Any]]
    prefix: Mapped[str] = mapped_column(String(255))
    adapter_sha256: Mapped[str] = mapped_column(String(64))
    figures: Mapped[dict[str, Any]]
    """What the train stage would have said, had it ended here."""


class OutboxMessage(Table):
    """A doorbell to ring, written in the transaction that made it necessary."""

    __tablename__ = "outbox"

    sequence: Mapped[int] = mapped_column(
        BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True
    )
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    created_at: Mapped[float]
    sent_at: Mapped[float | None] = mapped_column(index=True)
    traceparent: Mapped[str | None] = mapped_column(String(64))
    """W3C trace context of what made it necessary."""
