"""A project's files: list, upload, delete."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, RedirectResponse, Response

from service.dashboard.page_route import UserDep, UserPage
from service.dashboard.permission import may, require
from service.dashboard.rendering import page
from service.db import Database
from service.deps import Caller, DatabaseDep, StorageDep
from service.errors import ApiError
from service.files import endpoints, repository, service
from service.quotas.admission import AdmissionDep
from service.repeats import SubmissionDep
from service.settings import Settings

router = APIRouter(route_class=UserPage, include_in_schema=False)

FILES_PER_PAGE = 50
SCRIPTED = "x-upload"
"""Header of an upload that static/upload.js sends: it gets fragments, not pages."""


@router.get("/app/files")
def show_files(
    request: Request, database: DatabaseDep, caller: UserDep, after: str | None = None
) -> Response:
    require(caller, "GET", "/files")
    return page(
        request, "user/files.html.j2", **_listing(request, database, caller, after=after), problem=None
    )


@router.post("/app/files")
async def upload_file(
    request: Request,
    database: DatabaseDep,
    caller: UserDep,
    submission: SubmissionDep,
    admission: AdmissionDep,
) -> Response:
    """Streams as the API's own upload does. A browser reads no answer before it has sent everything, so a
    refused body is read to its end (up to what a file may have) and dropped."""
    scripted = SCRIPTED in request.headers
    try:
        require(caller, "POST", "/files")
        file = await endpoints.create_file(request, caller, submission, admission)
    except ApiError as error:
        settings: Settings = request.state.settings
        await _drop_rest(request, settings.max_file_bytes)
        problem = _problem(error)
        if scripted:
            return page(request, "user/upload_problem.html.j2", status=error.status, problem=problem)
        listing = _listing(request, database, caller, after=None)
        return page(request, "user/files.html.j2", status=error.status, **listing, problem=problem)
    location = f"/app/files?uploaded={file.id}"
    if scripted:
        return JSONResponse({"location": location})
    return RedirectResponse(location, status_code=303)


@router.post("/app/files/{file_id}/delete")
def delete_file(
    file_id: str,
    database: DatabaseDep,
    storage: StorageDep,
    caller: UserDep,
) -> Response:
    require(caller, "DELETE", "/files/{file_id}")
    service.delete_file(
        database, storage, project_id=caller.project_id, file_id=file_id, trail=caller.trail, now=time.time()
    )
    return RedirectResponse("/app/files", status_code=303)


def _listing(request: Request, database: Database, caller: Caller, *, after: str | None) -> dict[str, Any]:
    with database.snapshot() as session:
        start = None
        if after is not None:
            start = repository.position(session, caller.project_id, after)
            if start is None:
                raise service.file_not_found(after)
        files, has_more = repository.list_files(
            session, caller.project_id, purpose=None, after=start, limit=FILES_PER_PAGE, ascending=False
        )
    settings: Settings = request.state.settings
    return {
        "files": files,
        "next": files[-1].id if has_more else None,
        "uploaded": request.query_params.get("uploaded"),
        "may_upload": may(caller, "POST", "/files"),
        "may_delete": may(caller, "DELETE", "/files/{file_id}"),
        "may_create": may(caller, "POST", "/fine_tuning/jobs"),
        "max_file_bytes": settings.max_file_bytes,
        "min_examples": settings.min_examples,
    }


def _problem(error: ApiError) -> Mapping[str, Any]:
    issues = error.extra.get("issues", [])
    return {
        "message": error.message,
        "issues": issues,
        "num_issues": error.extra.get("num_issues", len(issues)),
    }


async def _drop_rest(request: Request, max_bytes: int) -> None:
    num_bytes = 0
    with suppress(RuntimeError):  # it was read to its end already
        async for chunk in request.stream():
            num_bytes += len(chunk)
            if num_bytes > max_bytes:
                return
