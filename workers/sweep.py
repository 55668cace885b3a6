"""Deletes objects that no job needs any more: what supervisors that died could not delete themselves.

Below `private/` everything of a job that is over; below `adapters/` what a job that is over uploaded but
did not release. Objects of jobs that are not over are never touched: their owner may still write there.
"""

from __future__ import annotations

import structlog
from sqlalchemy import select

from service.db import Database
from service.jobs.states import TERMINAL
from service.models import Adapter, Job
from service.storage import Storage

log = structlog.get_logger(__name__)

_BATCH = 500
_OVER = [status.value for status in TERMINAL]


def sweep(database: Database, storage: Storage) -> list[str]:
    """The deleted keys."""
    keys = storage.keys("private") + storage.keys("adapters")
    job_of = {key: key.split("/")[1] for key in keys if key.count("/") >= 2}
    over, released = _over_and_released(database, sorted(set(job_of.values())))
    unneeded = [key for key, job_id in job_of.items() if job_id in over and key not in released]
    for key in unneeded:
        storage.delete(key)
    if unneeded:
        log.info("swept storage", num_objects=len(unneeded))
    return unneeded


def _over_and_released(database: Database, job_ids: list[str]) -> tuple[set[str], set[str]]:
    over: set[str] = set()
    released: set[str] = set()
    with database.snapshot() as session:
        for start in range(0, len(job_ids), _BATCH):
            batch = job_ids[start : start + _BATCH]
            over |= set(session.scalars(select(Job.id).where(Job.id.in_(batch), Job.status.in_(_OVER))))
            released |= set(
                session.scalars(
                    select(Adapter.storage_key).where(Adapter.job_id.in_(batch), Adapter.deleted_at.is_(None))
                )
            )
    return over, released
