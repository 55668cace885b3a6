"""Deletes objects that nothing needs any more: what processes that died could not delete themselves.

Below `private/` everything of a job that is over; below `adapters/` what a job that is over uploaded but
did not release; below `files/` what has no row, an hour after it came. Objects of jobs that are not over are
never touched: their owner may still write there.
"""

from __future__ import annotations

import structlog
from sqlalchemy import select

from service.db import Database
from service.jobs.states import TERMINAL
from service.models import Adapter, File, Job
from service.storage import Storage, file_key

log = structlog.get_logger(__name__)

_BATCH = 500
FILE_GRACE_SECONDS = 3600.0
"""An upload's row is written moments after its last byte; this is far beyond that."""
_OVER = [status.value for status in TERMINAL]


def sweep(database: Database, storage: Storage, *, now: float) -> list[str]:
    """The deleted keys."""
    unneeded = _of_jobs(database, storage) + _files_without_row(database, storage, now=now)
    for key in unneeded:
        storage.delete(key)
    if unneeded:
        log.info("swept storage", num_objects=len(unneeded))
    return unneeded


def _of_jobs(database: Database, storage: Storage) -> list[str]:
    keys = storage.keys("private") + storage.keys("adapters")
    job_of = {key: key.split("/")[1] for key in keys if key.count("/") >= 2}
    over, released = _over_and_released(database, sorted(set(job_of.values())))
    return [key for key, job_id in job_of.items() if job_id in over and key not in released]


def _files_without_row(database: Database, storage: Storage, *, now: float) -> list[str]:
    stored = storage.keys("files")
    known: set[str] = set()
    with database.snapshot() as session:
        for start in range(0, len(stored), _BATCH):
            ids = [key.removeprefix("files/") for key in stored[start : start + _BATCH]]
            query = select(File.id).where(File.id.in_(ids), File.deleted_at.is_(None))
            known |= {file_key(id) for id in session.scalars(query)}
    return [key for key in stored if key not in known and storage.modified_at(key) < now - FILE_GRACE_SECONDS]


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
