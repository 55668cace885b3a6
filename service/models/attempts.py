"""One row per claim of a job."""

from __future__ import annotations

from sqlalchemy import BigInteger, ForeignKey, Integer, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from service.models.base import Table


class JobAttempt(Table):
    """Written with the claim, and once more with its end (`service.jobs.attempts`). For operators: its owner
    sees neither the worker nor the log."""

    __tablename__ = "job_attempts"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    fencing_number: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    """Of the claim; those of a job ascend, with gaps."""
    worker: Mapped[str] = mapped_column(String(255))
    first_stage: Mapped[str] = mapped_column(String(16))
    last_stage: Mapped[str | None] = mapped_column(String(16))
    """Where the job was when the attempt ended."""
    started_at: Mapped[float]
    ended_at: Mapped[float | None]
    exit_reason: Mapped[str | None] = mapped_column(String(24))
    """An `ExitReason`; null while it runs."""
    exit_code: Mapped[int | None] = mapped_column(Integer)
    """Of the child that did not say how it ended; negative: the number of the signal that ended it."""
    error_code: Mapped[str | None] = mapped_column(String(64))
    """What the child said it failed with."""
    log_tail: Mapped[str | None] = mapped_column(Text)
    """Last lines of the child's log."""
    log_expires_at: Mapped[float | None] = mapped_column(index=True)
    """When the log is forgotten; null where there is none."""
