"""What of an adapter can be downloaded, and the answer that carries it: the tar, or one file out of it.

A file is a range of the tar's bytes, so both are read from the one object that was stored.
"""

from __future__ import annotations

import base64
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from sqlalchemy.orm import Session
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from service.adapters import repository
from service.audit.log import Actor, record
from service.db import Database
from service.errors import ApiError
from service.jobs.service import get_job
from service.models import Adapter
from service.ranges import (
    ByteRange,
    PreconditionFailedError,
    UnsatisfiableRangeError,
    select,
    unsatisfied,
)
from service.storage import Storage

_BINARY: dict[str, Any] = {
    kind: {"schema": {"type": "string", "format": "binary"}}
    for kind in ("application/octet-stream", "application/x-tar")
}
RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"content": _BINARY},
    206: {"description": "The range that was asked for.", "content": _BINARY},
    304: {"description": "If-None-Match names this content."},
}
"""What `answer` gives besides errors, for the API's description."""


@dataclass(frozen=True)
class Download:
    """`num_bytes` of the object `key`, from `offset` on."""

    model_id: str
    organization_id: str
    project_id: str
    name: str | None
    """Of the file in the package; None for the whole tar."""
    key: str
    offset: int
    num_bytes: int
    sha256: str
    filename: str
    media_type: str


def released(session: Session, project_id: str, job_id: str, *, now: float) -> Adapter:
    """Raises ApiError 404: no such job, nothing released, or deleted."""
    job = get_job(session, project_id, job_id).job
    adapter = repository.get_adapter_of_job(session, project_id, job_id)
    if adapter is None:
        why = f"its status is {job.status}, stage {job.stage}"
        if job.error_code is not None:
            why = f"the job failed with {job.error_code}"
        raise ApiError(
            404,
            f"Job {job_id!r} has released no adapter: {why}.",
            param="job_id",
            code="adapter_not_released",
        )
    if adapter.deleted_at is not None or (adapter.expires_at is not None and adapter.expires_at <= now):
        raise adapter_deleted(job_id)
    return adapter


def adapter_deleted(job_id: str) -> ApiError:
    return ApiError(
        404,
        f"The adapter of job {job_id!r} was deleted or has expired. A retry of the job makes a new one.",
        param="job_id",
        code="adapter_deleted",
    )


def download_of(
    session: Session, adapter: Adapter, name: str | None = None, *, param: str = "name"
) -> Download:
    """The tar, or the file `name` of it. Raises ApiError 404, about `param`."""
    if name is None:
        return Download(
            model_id=adapter.model_id,
            organization_id=adapter.organization_id,
            project_id=adapter.project_id,
            name=None,
            key=adapter.storage_key,
            offset=0,
            num_bytes=adapter.bytes,
            sha256=adapter.sha256,
            filename=f"{adapter.job_id}-adapter.tar",
            media_type="application/x-tar",
        )
    file = repository.get_file(session, adapter.model_id, name)
    if file is None:
        raise ApiError(
            404,
            f"The adapter of job {adapter.job_id!r} has no file {name!r}; GET .../adapter/files lists them.",
            param=param,
            code="adapter_file_not_found",
        )
    return Download(
        model_id=adapter.model_id,
        organization_id=adapter.organization_id,
        project_id=adapter.project_id,
        name=name,
        key=adapter.storage_key,
        offset=file.offset,
        num_bytes=file.bytes,
        sha256=file.sha256,
        filename=name,
        media_type="application/octet-stream",
    )


def answer(
    request: Request, storage: Storage, download: Download, *, on_read: Callable[[ByteRange | None], None]
) -> Response:
    """The content, a range of it, or why not (304, 412, 416). `on_read` is called when bytes are about to
    leave, with the range if it is not everything. Raises FileNotFoundError if the object is gone."""
    etag = f'"{download.sha256}"'
    try:
        selection = select(request.method, request.headers, etag=etag, total=download.num_bytes)
    except PreconditionFailedError:
        return ApiError(
            412,
            f"The content is not what If-Match names; its ETag is {etag}.",
            param="If-Match",
            code="precondition_failed",
        ).response({"ETag": etag})
    except UnsatisfiableRangeError:
        return ApiError(
            416,
            f"The range lies behind the end: there are {download.num_bytes} bytes.",
            param="Range",
            code="range_not_satisfiable",
        ).response(unsatisfied(download.num_bytes))
    headers = {
        "Accept-Ranges": "bytes",
        "Cache-Control": "no-store",
        "Content-Disposition": attachment(download.filename),
        "ETag": etag,
        "Repr-Digest": f"sha-256=:{base64.b64encode(bytes.fromhex(download.sha256)).decode()}:",
        "X-Content-SHA256": download.sha256,
    }
    if selection.not_modified:
        return Response(status_code=304, headers=headers)
    whole = ByteRange(0, download.num_bytes, download.num_bytes)
    sent = selection.range or whole
    headers["Content-Length"] = str(sent.num_bytes)
    if selection.range is not None:
        headers["Content-Range"] = sent.content_range
    if request.method == "HEAD":
        storage.num_bytes(download.key)
        return Response(headers=headers, media_type=download.media_type)
    content = _content(storage, download, sent)
    on_read(selection.range)
    return StreamingResponse(
        content,
        status_code=200 if selection.range is None else 206,
        headers=headers,
        media_type=download.media_type,
    )


def deliver(
    request: Request,
    database: Database,
    storage: Storage,
    download: Download,
    *,
    actor: Actor,
    gone: ApiError,
    **details: Any,
) -> Response:
    """As `answer`, with an entry in the audit log when bytes leave. Raises `gone` if another request is
    deleting it: its row was still there, its bytes are not."""

    def on_read(sent: ByteRange | None) -> None:
        with database.transaction() as session:
            part = None if sent is None else sent.content_range
            note(session, actor, "adapter.downloaded", download, now=time.time(), range=part, **details)

    try:
        return answer(request, storage, download, on_read=on_read)
    except FileNotFoundError as error:
        raise gone from error


def note(
    session: Session, actor: Actor, action: str, download: Download, *, now: float, **details: Any
) -> None:
    """An entry of the audit log about a download or a link to one."""
    record(
        session,
        actor,
        action,
        download.model_id,
        organization_id=download.organization_id,
        project_id=download.project_id,
        now=now,
        file=download.name,
        sha256=download.sha256,
        **details,
    )


def _content(storage: Storage, download: Download, sent: ByteRange) -> Iterator[bytes]:
    start = download.offset + sent.start
    whole = sent.num_bytes == download.num_bytes
    sha256 = download.sha256 if whole else None
    return storage.stream_range(download.key, start=start, num_bytes=sent.num_bytes, sha256=sha256)


def attachment(filename: str) -> str:
    """Content-Disposition by RFC 6266: a plain name, and the exact one beside it if that differs."""
    plain = re.sub(r"[^A-Za-z0-9._ -]", "_", filename)
    value = f'attachment; filename="{plain}"'
    return value if plain == filename else f"{value}; filename*=UTF-8''{quote(filename, safe='')}"
