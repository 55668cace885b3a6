"""Receiving and deleting files.

A dataset is checked while it streams to storage, so a bad one costs no memory and leaves nothing:
neither an object (the store drops what was not finished) nor a row (written last).
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from autoclave.data.conversations import ConversationChecker, DatasetSummary
from autoclave.errors import DataError
from service import ids
from service.db import Database
from service.errors import ApiError, invalid, not_found
from service.files import repository
from service.files.multipart import UploadForm
from service.files.schemas import PURPOSE
from service.models import File
from service.storage import Storage, file_key


@dataclass(frozen=True)
class UploadLimits:
    max_file_bytes: int
    max_line_bytes: int
    min_examples: int


class Upload:
    """One request body on its way to storage. `summary` is set once `checked` has ended."""

    summary: DatasetSummary

    def __init__(self, content_type: str, limits: UploadLimits) -> None:
        self.form = UploadForm(content_type)
        self._max_bytes = limits.max_file_bytes
        self._checker = ConversationChecker(
            min_examples=limits.min_examples, max_line_bytes=limits.max_line_bytes
        )

    def checked(self, body: Iterable[bytes]) -> Iterator[bytes]:
        """The file's bytes. Raises ApiError at the first limit exceeded, or at the end for bad data."""
        num_bytes = 0
        for chunk in body:
            data = self.form.feed(chunk)
            if "purpose" in self.form.fields:
                self._check_fields()
            if data:
                num_bytes += len(data)
                if num_bytes > self._max_bytes:
                    raise too_large(self._max_bytes)
                self._checker.feed(data)
                yield data
        self.form.finish()
        self._check_fields()
        try:
            self.summary = self._checker.finish()
        except DataError as error:
            raise _bad_dataset(error) from error

    def _check_fields(self) -> None:
        purpose = self.form.fields.get("purpose")
        if purpose is None:
            raise invalid(
                "Missing required parameter: 'purpose'.", param="purpose", code="missing_required_parameter"
            )
        if purpose != PURPOSE:
            raise invalid(
                f"Purpose {purpose!r} is not supported: this server fine-tunes, send purpose='{PURPOSE}'.",
                param="purpose",
                code="unsupported_purpose",
            )
        unknown = self.form.fields.keys() - {"purpose"}
        if unknown:
            name = min(unknown)
            raise invalid(
                f"Unknown parameter: {name!r}. Files are kept until they are deleted.",
                param=name,
                code="unknown_parameter",
            )


def too_large(max_bytes: int) -> ApiError:
    return ApiError(
        413, f"The file is larger than this server's limit of {max_bytes} bytes.", code="file_too_large"
    )


def create_file(
    database: Database,
    storage: Storage,
    *,
    project_id: str,
    content_type: str,
    body: Iterable[bytes],
    limits: UploadLimits,
) -> File:
    """Raises ApiError and whatever `body` raises; then nothing is stored.

    Opens its own transaction after the last byte came: none may stay open while a client sends.
    """
    file_id = ids.file_id()
    key = file_key(file_id)
    upload = Upload(content_type, limits)
    storage.put(key, upload.checked(body))
    file = File(
        id=file_id,
        project_id=project_id,
        filename=upload.form.filename,
        purpose=PURPOSE,
        bytes=upload.summary.bytes,
        sha256=upload.summary.sha256,
        storage_key=key,
        status="processed",
        num_examples=upload.summary.num_examples,
        created_at=time.time(),
    )
    try:
        with database.transaction() as session:
            session.add(file)
    except BaseException:
        storage.delete(key)
        raise
    return file


def delete_file(database: Database, storage: Storage, *, project_id: str, file_id: str, now: float) -> None:
    """Remove the bytes, keep the row for jobs that name it. Raises ApiError 404, or 400 if a job that
    has not ended needs the file.

    First the row, then the bytes: a row without bytes would be a file that cannot be read, while bytes
    without a row are swept up (`workers.sweep`). Both are gone when this returns.
    """
    with database.transaction() as session:
        file = repository.get_file_for_update(session, project_id, file_id)
        if file is None:
            raise file_not_found(file_id)
        job_id = repository.live_job_using(session, file_id)
        if job_id is not None:
            raise invalid(
                f"File {file_id!r} is used by job {job_id!r}, which has not ended. Cancel the job, or wait.",
                param="file_id",
                code="file_in_use",
            )
        file.deleted_at = now
    storage.delete(file.storage_key)


def file_not_found(file_id: str, *, param: str = "file_id") -> ApiError:
    return not_found("file", file_id, param=param, code="file_not_found")


def _bad_dataset(error: DataError) -> ApiError:
    return ApiError(
        400,
        f"Invalid training file: {error}",
        param="file",
        code=error.code,
        extra={
            "issues": [issue.as_dict() for issue in error.issues],
            "num_issues": error.num_issues,
        },
    )
