"""/dashboard/jobs/{id}: anybody's job, for operators. Nothing of a tenant's data but figures."""

from __future__ import annotations

import time
from typing import Annotated
from urllib.parse import quote

from fastapi import APIRouter, Form, Query, Request
from starlette.responses import RedirectResponse, Response

from service.checkpoints.gated import ReleaseError, release_gated_job
from service.dashboard import job_page
from service.dashboard.job_deeds import DEEDS, perform_as_operator
from service.dashboard.job_page import Viewer
from service.dashboard.page_route import OperatorDep, OperatorPage
from service.deps import DatabaseDep
from service.errors import ApiError
from service.pace import MIN_SECONDS

router = APIRouter(prefix="/dashboard/jobs/{job_id}", route_class=OperatorPage, include_in_schema=False)

VIEWER = Viewer("/dashboard/jobs", None, frozenset(DEEDS))


@router.get("")
def show_job(request: Request, database: DatabaseDep, job_id: str) -> Response:
    return job_page.show_job(request, database, VIEWER, job_id)


@router.get("/live")
def show_live(
    request: Request, database: DatabaseDep, job_id: str, seen: str = "", every: int = MIN_SECONDS
) -> Response:
    return job_page.show_live(request, database, VIEWER, job_id, seen=seen, every=every)


@router.get("/events")
def show_events(
    request: Request,
    database: DatabaseDep,
    job_id: str,
    before: Annotated[int | None, Query(ge=0, lt=2**63)] = None,
) -> Response:
    return job_page.show_events(request, database, VIEWER, job_id, before=before)


@router.get("/metrics.json")
def show_metrics(
    database: DatabaseDep, job_id: str, after: Annotated[int, Query(ge=0, lt=2**31)] = 0
) -> Response:
    return job_page.curve_of(database, VIEWER, job_id, after=after)


@router.get("/report")
def show_report(database: DatabaseDep, job_id: str, download: bool = False) -> Response:
    return job_page.show_report(database, VIEWER, job_id, download=download)


@router.post("/release")
def release(
    *,
    request: Request,
    database: DatabaseDep,
    caller: OperatorDep,
    job_id: str,
    reason: Annotated[str, Form()] = "",
) -> Response:
    """What `autoclave admin release-job` does."""
    try:
        with database.transaction() as session:
            new_id = release_gated_job(
                session,
                job_id,
                reason=reason,
                actor=caller.actor,
                kept_ttl_seconds=request.state.settings.kept_adapter_ttl_seconds,
                now=time.time(),
            )
    except ReleaseError as error:
        return job_page.show_job(request, database, VIEWER, job_id, problem=str(error), status=400)
    return RedirectResponse(f"{VIEWER.root}/{new_id}", status_code=303)


@router.post("/{deed}")
def act(
    *,
    request: Request,
    database: DatabaseDep,
    caller: OperatorDep,
    job_id: str,
    deed: str,
) -> Response:
    try:
        with database.transaction() as session:
            shown = perform_as_operator(
                session, deed, job_id, caller, settings=request.state.settings, now=time.time()
            )
    except ApiError as error:
        if error.status == 404:
            raise
        return job_page.show_job(
            request, database, VIEWER, job_id, problem=error.message, status=error.status
        )
    return RedirectResponse(f"{VIEWER.root}/{shown}", status_code=303)


@router.get("/{deed}")
def back(job_id: str, deed: str) -> Response:
    """For a browser that loads the address of a refused form again."""
    if deed not in (*DEEDS, "release"):
        raise ApiError(404, f"There is no page {deed} of a job.", code="unknown_url")
    return RedirectResponse(f"{VIEWER.root}/{quote(job_id, safe='')}", status_code=303)
