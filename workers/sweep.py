"""Deletes objects that nothing needs any more: what processes that died could not delete themselves.

Below `private/` everything of a job that is over, but for kept adapters (`service.checkpoints.kept`); below
`adapters/` what a job that is over uploaded but did not release; below `files/` and `uploads/` what has no
row, an hour after it came, and what a killed process had not finished writing. Files, uploads and adapters
whose time is over end here too. Objects of jobs that are not over are never touched: their owner may still
write there.
"""

from __future__ import annotations

import structlog
from sqlalchemy import select

from service.adapters.deletion import delete_expired as delete_expired_adapters
from service.checkpoints.kept import needed_prefixes
from service.db import Database
from service.files.service import delete_expired as delete_expired_files
from service.jobs.states import TERMINAL
from service.models import Adapter, File, Job, UploadPart
from service.settings import KEPT_ADAPTER_TTL_SECONDS
from service.storage import Storage, file_key, part_key, private_prefix
from service.uploads.service import delete_expired as delete_expired_uploads

log = structlog.get_logger(__name__)

_BATCH = 500
FILE_GRACE_SECONDS = 3600.0
"""An upload's row is written moments after its last byte; this is far beyond that."""
_OVER = [status.value for status in TERMINAL]


def sweep(
    database: Database,
    storage: Storage,
    *,
    now: float,
    kept_ttl_seconds: float = KEPT_ADAPTER_TTL_SECONDS,
) -> list[str]:
    """The deleted keys."""
    expired = delete_expired_files(database, storage, now=now)
    adapters = delete_expired_adapters(database, storage, now=now)
    num_uploads = delete_expired_uploads(database, storage, now=now)
    num_unfinished = storage.delete_unfinished(before=now - FILE_GRACE_SECONDS)
    unneeded = _of_jobs(database, storage, kept_ttl_seconds=kept_ttl_seconds, now=now)
    unneeded += _without_row(database, storage, now=now)
    storage.delete_all(unneeded)
    if unneeded or expired or adapters or num_uploads or num_unfinished:
        log.info(
            "swept storage",
            num_objects=len(unneeded),
            num_expired_files=len(expired),
            num_expired_adapters=len(adapters),
            num_expired_uploads=num_uploads,
            num_unfinished=num_unfinished,
        )
    return expired + adapters + unneeded


def sweep_job(
    database: Database, storage: Storage, job_id: str, *, kept_ttl_seconds: float, now: float
) -> None:
    """Delete the private objects of one job that is over, but for kept adapters."""
    with database.snapshot() as session:
        needed = needed_prefixes(session, [job_id], ttl_seconds=kept_ttl_seconds, now=now)
    keys = storage.keys(private_prefix(job_id))
    storage.delete_all([key for key in keys if not _is_below(key, needed)])


def _of_jobs(database: Database, storage: Storage, *, kept_ttl_seconds: float, now: float) -> list[str]:
    keys = storage.keys("private") + storage.keys("adapters")
    job_of = {key: key.split("/")[1] for key in keys if key.count("/") >= 2}
    job_ids = sorted(set(job_of.values()))
    over, released = _over_and_released(database, job_ids)
    kept: set[str] = set()
    with database.snapshot() as session:
        for start in range(0, len(job_ids), _BATCH):
            batch = job_ids[start : start + _BATCH]
            kept |= needed_prefixes(session, batch, ttl_seconds=kept_ttl_seconds, now=now)
    return [
        key
        for key, job_id in job_of.items()
        if job_id in over and key not in released and not _is_below(key, kept)
    ]


def _is_below(key: str, prefixes: set[str]) -> bool:
    """Prefixes are folders that hold files, as `Storage.upload_folder` writes them."""
    return key.rpartition("/")[0] in prefixes


def _without_row(database: Database, storage: Storage, *, now: float) -> list[str]:
    """Files and parts of uploads. Listed before the rows are read: a row is written after its bytes."""
    files, parts = storage.keys("files"), storage.keys("uploads")
    known: set[str] = set()
    with database.snapshot() as session:
        for start in range(0, len(files), _BATCH):
            ids = [key.removeprefix("files/") for key in files[start : start + _BATCH]]
            query = select(File.id).where(File.id.in_(ids), File.deleted_at.is_(None))
            known |= {file_key(id) for id in session.scalars(query)}
        for start in range(0, len(parts), _BATCH):
            ids = [key.rsplit("/", 1)[1] for key in parts[start : start + _BATCH]]
            rows = select(UploadPart.upload_id, UploadPart.id).where(UploadPart.id.in_(ids))
            known |= {part_key(row[0], row[1]) for row in session.execute(rows)}
    before = now - FILE_GRACE_SECONDS
    return [key for key in files + parts if key not in known and _is_older(storage, key, before)]


def _is_older(storage: Storage, key: str, before: float) -> bool:
    try:
        return storage.modified_at(key) < before
    except FileNotFoundError:
        return False  # deleted meanwhile


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
