"""/app/jobs/{id}: a project's own job."""

from __future__ import annotations

import time
from typing import Annotated
from urllib.parse import quote

from fastapi import APIRouter, Query, Request
from starlette.responses import RedirectResponse, Response, StreamingResponse

from service.adapters.downloads import adapter_deleted, deliver, download_of, released
from service.dashboard import job_page
from service.dashboard.job_deeds import DEEDS, perform
from service.dashboard.job_page import Viewer
from service.dashboard.page_route import UserDep, UserPage
from service.dashboard.permission import may, require
from service.deps import Caller, DatabaseDep, StorageDep
from service.errors import ApiError
from service.files import repository as files
from service.files.service import file_not_found
from service.jobs import repository as jobs
from service.jobs.service import job_not_found
from service.pace import MIN_SECONDS

router = APIRouter(prefix="/app/jobs/{job_id}", route_class=UserPage, include_in_schema=False)

API = "/fine_tuning/jobs/{job_id}"


def viewer_of(caller: Caller) -> Viewer:
    """Raises ApiError 403 for a key that may not read jobs."""
    require(caller, "GET", API)
    allowed = {deed for deed in DEEDS if may(caller, "POST", f"{API}/{deed}")}
    if may(caller, "GET", f"{API}/adapter"):
        allowed.add("download")
    if may(caller, "GET", "/files/{file_id}/content"):
        allowed.add("files")
    return Viewer("/app/jobs", caller.project_id, frozenset(allowed))


@router.get("")
def show_job(request: Request, database: DatabaseDep, caller: UserDep, job_id: str) -> Response:
    return job_page.show_job(request, database, viewer_of(caller), job_id)


@router.get("/live")
def show_live(
    *,
    request: Request,
    database: DatabaseDep,
    caller: UserDep,
    job_id: str,
    seen: str = "",
    every: int = MIN_SECONDS,
) -> Response:
    return job_page.show_live(request, database, viewer_of(caller), job_id, seen=seen, every=every)


@router.get("/events")
def show_events(
    request: Request,
    database: DatabaseDep,
    caller: UserDep,
    job_id: str,
    before: Annotated[int | None, Query(ge=0, lt=2**63)] = None,
) -> Response:
    return job_page.show_events(request, database, viewer_of(caller), job_id, before=before)


@router.get("/metrics.json")
def show_metrics(
    database: DatabaseDep,
    caller: UserDep,
    job_id: str,
    after: Annotated[int, Query(ge=0, lt=2**31)] = 0,
) -> Response:
    return job_page.curve_of(database, viewer_of(caller), job_id, after=after)


@router.get("/report")
def show_report(database: DatabaseDep, caller: UserDep, job_id: str, download: bool = False) -> Response:
    return job_page.show_report(database, viewer_of(caller), job_id, download=download)


@router.get("/adapter")
@router.get("/adapter/{name}")
def download_adapter(
    *,
    request: Request,
    database: DatabaseDep,
    storage: StorageDep,
    caller: UserDep,
    job_id: str,
    name: str | None = None,
) -> Response:
    """The package, or one file of it."""
    require(caller, "GET", f"{API}/adapter")
    with database.snapshot() as session:
        adapter = released(session, caller.project_id, job_id, now=time.time())
        download = download_of(session, adapter, name)
    return deliver(request, database, storage, download, actor=caller.actor, gone=adapter_deleted(job_id))


@router.get("/results/{file_id}")
def download_result(
    database: DatabaseDep, storage: StorageDep, caller: UserDep, job_id: str, file_id: str
) -> Response:
    require(caller, "GET", "/files/{file_id}/content")
    with database.snapshot() as session:
        view = jobs.get_job(session, caller.project_id, job_id)
        if view is None:
            raise job_not_found(job_id)
        file = files.get_file(session, caller.project_id, file_id)
        if file is None or file_id not in (view.job.result_file_ids or []):
            raise file_not_found(file_id)
    try:
        content = storage.stream(file.storage_key, sha256=file.sha256)
    except FileNotFoundError as error:
        raise file_not_found(file_id) from error
    name = quote(file.filename, safe="")
    headers = {
        "content-length": str(file.bytes),
        "content-disposition": f"attachment; filename*=UTF-8''{name}",
        "cache-control": "no-store",
    }
    return StreamingResponse(content, media_type="application/octet-stream", headers=headers)


@router.post("/{deed}")
def act(
    *,
    request: Request,
    database: DatabaseDep,
    caller: UserDep,
    job_id: str,
    deed: str,
) -> Response:
    viewer = viewer_of(caller)
    if deed in DEEDS:
        require(caller, "POST", f"{API}/{deed}")
    try:
        with database.transaction() as session:
            shown = perform(
                session,
                deed,
                job_id,
                project_id=caller.project_id,
                organization_id=caller.organization_id,
                trail=caller.trail,
                settings=request.state.settings,
                now=time.time(),
            )
    except ApiError as error:
        if error.status == 404:
            raise
        return job_page.show_job(
            request, database, viewer, job_id, problem=error.message, status=error.status
        )
    return RedirectResponse(f"{viewer.root}/{shown}", status_code=303)


@router.get("/{deed}")
def back(job_id: str, deed: str) -> Response:
    """For a browser that loads the address of a refused form again."""
    if deed not in DEEDS:
        raise ApiError(404, f"There is no page {deed} of a job.", code="unknown_url")
    return RedirectResponse(f"/app/jobs/{quote(job_id, safe='')}", status_code=303)
