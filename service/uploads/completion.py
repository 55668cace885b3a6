"""From parts to a file: the same check as for a file in one piece, while the parts are copied together.

No transaction is open meanwhile. A check that fails leaves upload and parts as they were, so the client
can send what was wrong again. Two completions at once both copy; the first to commit makes the file and
the other one gives it back.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass

from sqlalchemy.exc import OperationalError

from service import ids
from service.audit.log import Trail
from service.db import Database
from service.errors import ApiError, invalid
from service.files.content import Content, ContentCheck
from service.files.service import new_file
from service.models import File, Upload, UploadPart
from service.repeats import Submission
from service.storage import Storage, file_key, part_key
from service.uploads import repository
from service.uploads.schemas import CompleteUpload, UploadObject
from service.uploads.service import (
    PartLimits,
    delete_bytes,
    end,
    file_of,
    get_upload,
    lock_upload,
    require_pending,
)


@dataclass(frozen=True)
class Completed:
    upload: Upload
    file: File | None
    """None if it was deleted since."""


class _Assembly:
    """The parts as one file. `content` and `md5` are set once `checked` has ended."""

    content: Content
    md5: str

    def __init__(self, upload: Upload, limits: PartLimits, *, expected_md5: str | None) -> None:
        self._purpose = upload.purpose
        self._check = ContentCheck(upload.purpose, limits)
        self._expected_md5 = expected_md5

    def checked(self, chunks: Generator[bytes, None, None]) -> Iterator[bytes]:
        """Raises ApiError 400 at the end."""
        digest = hashlib.md5(usedforsecurity=False)
        with closing(chunks):
            for chunk in chunks:
                digest.update(chunk)
                self._check.feed(chunk)
                yield chunk
        self.md5 = digest.hexdigest()
        _require_md5(self._expected_md5, self.md5)
        self.content = self._check.finish(self._purpose, param="part_ids")


def complete_upload(
    database: Database,
    storage: Storage,
    request: CompleteUpload,
    *,
    project_id: str,
    upload_id: str,
    limits: PartLimits,
    submission: Submission,
    trail: Trail,
    now: float,
) -> Completed:
    """Raises ApiError and AnsweredBefore; then the upload is as it was. With the parts that it was completed
    with before, the same answer again."""
    with database.snapshot() as session:
        upload = get_upload(session, project_id, upload_id)
        if upload.status == "completed":
            submission.begin(session, request)
            return _again(upload, request, file_of(session, upload))
        require_pending(upload, now=now)
        parts = _chosen(upload, repository.list_parts(session, upload_id), request.part_ids)
    file_id = ids.file_id()
    key = file_key(file_id)
    assembly = _Assembly(upload, limits, expected_md5=request.md5)
    try:
        stored = storage.read_ahead(
            [part_key(upload_id, part.id) for part in parts], sha256=[part.sha256 for part in parts]
        )
        storage.put(key, assembly.checked(stored))
    except FileNotFoundError:
        # It was cancelled, or completed by another request, while this one was reading.
        return _ended_meanwhile(database, request, project_id=project_id, upload_id=upload_id)
    try:
        with database.transaction() as session:
            submission.begin(session, request)
            upload = lock_upload(session, project_id, upload_id)
            file: File | None
            if upload.status == "completed":
                completed, won = _again(upload, request, file_of(session, upload)), False
            else:
                # As of when this began: it may end a little later than the upload expires.
                require_pending(upload, now=now)
                file = new_file(
                    file_id,
                    assembly.content,
                    project_id=project_id,
                    filename=upload.filename,
                    purpose=upload.purpose,
                    expires_after_seconds=upload.file_expires_after_seconds,
                    now=time.time(),
                )
                session.add(file)
                session.flush()
                end(session, upload, "completed", now=file.created_at)
                upload.part_ids, upload.md5, upload.file_id = list(request.part_ids), assembly.md5, file.id
                completed, won = Completed(upload, file), True
                trail.record(session, "upload.completed", upload_id, now=file.created_at, file_id=file.id)
                submission.remember(session, UploadObject.of(upload, file, now=now))
    except OperationalError:
        # The commit may have arrived although its answer did not. What has no row is swept up.
        raise
    except BaseException:
        storage.delete(key)
        raise
    if won:
        delete_bytes(storage, upload_id)
    else:
        storage.delete(key)
    return completed


def _chosen(upload: Upload, stored: list[UploadPart], part_ids: list[str]) -> list[UploadPart]:
    """The parts in the client's order. Raises ApiError 400."""
    by_id = {part.id: part for part in stored}
    seen: set[str] = set()
    for part_id in part_ids:
        if part_id in seen:
            raise _invalid_part(f"Part {part_id!r} is named twice.")
        if part_id not in by_id:
            raise _invalid_part(f"Upload {upload.id!r} has no part {part_id!r}.")
        seen.add(part_id)
    num_bytes = sum(by_id[part_id].bytes for part_id in part_ids)
    if num_bytes != upload.bytes:
        raise invalid(
            f"The parts hold {num_bytes} bytes, but the upload was created with bytes={upload.bytes}.",
            param="part_ids",
            code="size_mismatch",
        )
    return [by_id[part_id] for part_id in part_ids]


def _again(upload: Upload, request: CompleteUpload, file: File | None) -> Completed:
    if request.part_ids != upload.part_ids:
        raise invalid(
            f"Upload {upload.id!r} is already completed, with other parts.",
            param="part_ids",
            code="upload_already_ended",
        )
    assert upload.md5 is not None, f"{upload.id} is completed without an md5"
    _require_md5(request.md5, upload.md5)
    return Completed(upload, file)


def _ended_meanwhile(
    database: Database, request: CompleteUpload, *, project_id: str, upload_id: str
) -> Completed:
    with database.snapshot() as session:
        upload = get_upload(session, project_id, upload_id)
        if upload.status == "completed":
            return _again(upload, request, file_of(session, upload))
        require_pending(upload, now=time.time())
    raise FileNotFoundError(f"parts of the pending upload {upload_id} are not in the storage")


def _require_md5(expected: str | None, actual: str) -> None:
    if expected is not None and expected.lower() != actual:
        raise invalid(
            f"The file's md5 is {actual}, not {expected.lower()}. Send the parts that differ again.",
            param="md5",
            code="md5_mismatch",
        )


def _invalid_part(message: str) -> ApiError:
    return invalid(message, param="part_ids", code="invalid_part_ids")
