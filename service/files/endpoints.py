"""/v1/files: create, list, retrieve, content, delete."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Annotated, Any, Literal
from urllib.parse import quote

from anyio import to_thread
from fastapi import APIRouter, Query, Request
from starlette.responses import StreamingResponse

from service.bodies import receive, refuse_unreadable
from service.deps import AuthenticatedRoute, CallerDep, DatabaseDep, StorageDep
from service.files import repository, service
from service.files.content import USER_DATA
from service.files.schemas import (
    MAX_EXPIRES_SECONDS,
    MIN_EXPIRES_SECONDS,
    PURPOSE,
    FileDeleted,
    FileList,
    FileObject,
)
from service.models import File
from service.quotas.admission import AdmissionDep
from service.repeats import SubmissionDep
from service.settings import Settings

router = APIRouter(prefix="/files", tags=["files"], route_class=AuthenticatedRoute)

_UPLOAD_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file", "purpose"],
                    "additionalProperties": False,
                    "properties": {
                        "file": {"type": "string", "format": "binary"},
                        "purpose": {"type": "string", "enum": [PURPOSE, USER_DATA]},
                        "expires_after[anchor]": {"type": "string", "enum": ["created_at"]},
                        "expires_after[seconds]": {
                            "type": "integer",
                            "minimum": MIN_EXPIRES_SECONDS,
                            "maximum": MAX_EXPIRES_SECONDS,
                        },
                    },
                    "dependentRequired": {
                        "expires_after[anchor]": ["expires_after[seconds]"],
                        "expires_after[seconds]": ["expires_after[anchor]"],
                    },
                }
            }
        },
    }
}


@router.post("", openapi_extra=_UPLOAD_BODY)
async def create_file(
    request: Request, caller: CallerDep, submission: SubmissionDep, admission: AdmissionDep
) -> FileObject:
    """Asynchronous, unlike most endpoints: it feeds the body to a thread that checks and stores it."""
    settings: Settings = request.state.settings
    limits = service.UploadLimits(
        max_file_bytes=settings.max_file_bytes,
        max_line_bytes=settings.max_line_bytes,
        min_examples=settings.min_examples,
    )
    refuse_unreadable(request, max_bytes=limits.max_file_bytes, too_large=service.too_large)
    room = await to_thread.run_sync(admission.room, request.state.database, request, submission)

    def store(body: Iterable[bytes]) -> File:
        return service.create_file(
            request.state.database,
            request.state.storage,
            project_id=caller.project_id,
            content_type=request.headers.get("content-type", ""),
            body=room.bounded(body),
            limits=limits,
            submission=submission,
            trail=caller.trail,
            admission=admission,
        )

    return FileObject.of(await receive(request, store))


@router.get("")
def list_files(
    *,
    database: DatabaseDep,
    caller: CallerDep,
    purpose: str | None = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
    order: Literal["asc", "desc"] = "desc",
    after: str | None = None,
) -> FileList:
    with database.snapshot() as session:
        start = None
        if after is not None:
            start = repository.position(session, caller.project_id, after)
            if start is None:
                raise service.file_not_found(after, param="after")
        files, has_more = repository.list_files(
            session, caller.project_id, purpose=purpose, after=start, limit=limit, ascending=order == "asc"
        )
        return FileList.of(files, has_more=has_more)


@router.get("/{file_id}")
def retrieve_file(file_id: str, database: DatabaseDep, caller: CallerDep) -> FileObject:
    with database.snapshot() as session:
        file = repository.get_file(session, caller.project_id, file_id)
        if file is None:
            raise service.file_not_found(file_id)
        return FileObject.of(file)


@router.delete("/{file_id}")
def delete_file(file_id: str, database: DatabaseDep, storage: StorageDep, caller: CallerDep) -> FileDeleted:
    service.delete_file(
        database,
        storage,
        project_id=caller.project_id,
        file_id=file_id,
        trail=caller.trail,
        now=time.time(),
    )
    return FileDeleted(id=file_id)


@router.get("/{file_id}/content", response_class=StreamingResponse)
def file_content(
    file_id: str, database: DatabaseDep, storage: StorageDep, caller: CallerDep
) -> StreamingResponse:
    """The bytes exactly as they were uploaded."""
    with database.snapshot() as session:
        file = repository.get_file(session, caller.project_id, file_id)
        if file is None:
            raise service.file_not_found(file_id)
    try:
        content = storage.stream(file.storage_key, sha256=file.sha256)
    except FileNotFoundError as error:
        # Another request is deleting it, or has done so since.
        raise service.file_not_found(file_id) from error
    return StreamingResponse(
        content,
        media_type="application/octet-stream",
        headers={
            "Content-Length": str(file.bytes),
            "Content-Disposition": f"attachment; filename*=UTF-8''{quote(file.filename, safe='')}",
            "ETag": f'"{file.sha256}"',
        },
    )
