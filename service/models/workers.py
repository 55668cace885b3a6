"""Worker processes, as they show themselves."""

from __future__ import annotations

from sqlalchemy import BigInteger, Integer, String
from sqlalchemy.orm import Mapped, mapped_column

from service.models.base import Table


class Worker(Table):
    """Written by the process itself at every heartbeat, also when it has nothing to do. Nothing is decided
    by it: who works on a job is said by the job's lease."""

    __tablename__ = "workers"

    id: Mapped[str] = mapped_column(String(255), primary_key=True)
    """The same as in `jobs.lease_owner`."""
    host: Mapped[str] = mapped_column(String(255))
    pid: Mapped[int] = mapped_column(Integer)
    started_at: Mapped[float]
    heartbeat_at: Mapped[float] = mapped_column(index=True)
    state: Mapped[str] = mapped_column(String(16))
    """`service.fleet.states.WorkerState`"""
    job_id: Mapped[str | None] = mapped_column(String(64))
    """No foreign key: a worker's row must never keep a job from being deleted."""
    device_kind: Mapped[str] = mapped_column(String(16))
    """`cuda` or `cpu`."""
    device_name: Mapped[str] = mapped_column(String(255))
    memory_used_bytes: Mapped[int | None] = mapped_column(BigInteger)
    """Of the accelerator; on a CPU, of the child's processes. Null where nobody can tell."""
    memory_total_bytes: Mapped[int | None] = mapped_column(BigInteger)
    worker_class: Mapped[str | None] = mapped_column(String(64))
    """As the operator set it. This and the next two are null in rows of an older version."""
    job_memory_bytes: Mapped[int | None] = mapped_column(BigInteger)
    """What training may take of one GPU, or of the machine where there is none. Null where nobody can
    tell."""
    job_processes: Mapped[int | None] = mapped_column(Integer)
    """How many train a job together, as the operator set it; 0 is one for each GPU."""
