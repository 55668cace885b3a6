"""GET /v1/fine_tuning/jobs/{id}/report: the safety report as a page."""

from __future__ import annotations

import hashlib

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from service.deps import AuthenticatedRoute, CallerDep, DatabaseDep
from service.jobs import service as jobs
from service.reports.rendering import CONTENT_SECURITY_POLICY, render_report

router = APIRouter(prefix="/fine_tuning/jobs", tags=["fine-tuning"], route_class=AuthenticatedRoute)


@router.get(
    "/{job_id}/report",
    response_class=Response,
    responses={
        200: {"content": {"text/html": {"schema": {"type": "string"}}}},
        304: {"description": "The page is the one that If-None-Match names."},
    },
)
def report_page(
    request: Request, job_id: str, database: DatabaseDep, caller: CallerDep, download: bool = False
) -> Response:
    """The safety report as one HTML page that needs no other file; `download=true` has browsers save it."""
    with database.snapshot() as session:
        jobs.safety_report(session, project_id=caller.project_id, job_id=job_id)
        job = jobs.get_job(session, caller.project_id, job_id).job
        page = render_report(session, job).encode()
    etag = f'"{hashlib.sha256(page).hexdigest()}"'
    headers = {
        "Content-Security-Policy": f"{CONTENT_SECURITY_POLICY}; frame-ancestors 'none'",
        # Kept by the reader's browser alone, and asked for again each time: a job goes on.
        "Cache-Control": "private, no-cache",
        "ETag": etag,
    }
    if download:
        headers["Content-Disposition"] = f'attachment; filename="safety-report-{job.id}.html"'
    known = [tag.strip() for value in request.headers.getlist("if-none-match") for tag in value.split(",")]
    if {"*", etag} & {tag.removeprefix("W/") for tag in known}:
        return Response(status_code=304, headers=headers)
    return HTMLResponse(page, headers=headers)
