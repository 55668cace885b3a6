"""What the choice of the next job is made from: a row per project, and the kinds of workers there are."""

from __future__ import annotations

from sqlalchemy import BigInteger, ForeignKey, Index, Integer, String, text
from sqlalchemy.orm import Mapped, mapped_column

from service.models.base import Table

_WAITS = text("head_queued_at IS NOT NULL")


class ProjectQueue(Table):
    """One project's queue. What is counted here is counted anew from the jobs, behind the row's lock,
    whenever one of them enters or leaves `queued` or `running` (`service.scheduling.lanes`)."""

    __tablename__ = "project_queues"
    __table_args__ = (
        Index(
            "ix_project_queues_turn",
            *("rank", "num_running", "recent", "head_queued_at", "project_id"),
            postgresql_where=_WAITS,
            sqlite_where=_WAITS,
        ),
    )

    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"), primary_key=True)
    rank: Mapped[int] = mapped_column(Integer, default=0)
    """Minus the priority that an operator set: lower goes first."""
    worker_class: Mapped[str | None] = mapped_column(String(64))
    """Its jobs run only on workers of this class; null: on any."""
    num_running: Mapped[int] = mapped_column(Integer, default=0)
    num_waiting: Mapped[int] = mapped_column(Integer, default=0)
    """Queued jobs; counted up to a bound."""
    head_queued_at: Mapped[float | None]
    """`queued_at` of the job that waits longest; null if none waits."""
    recent: Mapped[float] = mapped_column(default=0.0)
    """Running time lately, as a number that keeps the order of projects while time passes
    (`lanes.charged`)."""
    running_limit: Mapped[int | None] = mapped_column(Integer)
    """How many may run at once, as the last claim saw it; null or 0: any number. For showing, not
    deciding."""


class KnownWorker(Table):
    """A kind of worker: those of one class and memory hear the same doorbell."""

    __tablename__ = "known_workers"

    worker_class: Mapped[str] = mapped_column(String(64), primary_key=True)
    memory_bytes: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    """0: not declared."""
    seen_at: Mapped[float]
