"""The job's log as its owner sees it. Every change of state writes one event, in its transaction.

Whoever adds an event holds the lock of the job's row (it was updated or selected for update before):
so the events of a job become visible in the order of their sequence, and a reader who goes on behind the
last one it saw misses none.
"""

from __future__ import annotations

from typing import Any, Literal

from sqlalchemy import insert
from sqlalchemy.orm import Session

from service import ids
from service.models import JobEvent

Level = Literal["info", "warn", "error"]


def add_event(
    session: Session,
    job_id: str,
    message: str,
    *,
    now: float,
    level: Level = "info",
    type: Literal["message", "metrics"] = "message",
    data: dict[str, Any] | None = None,
) -> None:
    session.flush()  # the job may be new
    values = {
        "id": ids.event_id(),
        "job_id": job_id,
        "created_at": now,
        "level": level,
        "type": type,
        "message": message,
        "data": data,
    }
    session.connection().execute(_INSERT, values)


_INSERT = insert(JobEvent.__table__)  # type: ignore[arg-type]
