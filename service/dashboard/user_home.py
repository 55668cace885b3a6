"""A project's jobs: the first page of `/app`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request
from sqlalchemy.orm import Session
from starlette.responses import Response

from service.dashboard.page_route import UserDep, UserPage
from service.dashboard.permission import may, require
from service.dashboard.rendering import UNCHANGED, page
from service.deps import Caller, DatabaseDep
from service.files.repository import names_of
from service.jobs import repository
from service.jobs.repository import JobView
from service.jobs.service import job_not_found
from service.jobs.states import TERMINAL, Status, from_the_wire, on_the_wire

router = APIRouter(route_class=UserPage, include_in_schema=False)

JOBS_PER_PAGE = 25
FILTERS = ("running", "queued", "succeeded", "failed", "cancelled")


@dataclass(frozen=True)
class JobLine:
    """A row of the list. Percentages are of the held-out harmful prompts."""

    id: str
    name: str
    status: str
    """`paused` is a word of its own here."""
    stage: str
    base: str
    file: str
    created_at: float
    step: int | None
    total_steps: int | None
    queue_position: int | None
    harmful_before: float | None
    harmful_after: float | None


@router.get("/app")
def show_home(
    request: Request, database: DatabaseDep, caller: UserDep, status: str = "", after: str | None = None
) -> Response:
    require(caller, "GET", "/fine_tuning/jobs")
    with database.snapshot() as session:
        listing = _listing(session, caller, status=status, after=after)
    return page(
        request,
        "user/home.html.j2",
        **listing,
        filters=FILTERS,
        may_create=may(caller, "POST", "/fine_tuning/jobs"),
        url=str(request.base_url).rstrip("/"),
    )


@router.get("/app/live")
def live_home(
    *,
    request: Request,
    database: DatabaseDep,
    caller: UserDep,
    status: str = "",
    after: str | None = None,
    seen: str = "",
) -> Response:
    require(caller, "GET", "/fine_tuning/jobs")
    with database.snapshot() as session:
        listing = _listing(session, caller, status=status, after=after)
    return UNCHANGED if listing["version"] == seen else page(request, "user/jobs.html.j2", **listing)


def _listing(session: Session, caller: Caller, *, status: str, after: str | None) -> dict[str, Any]:
    start = None
    if after is not None:
        start = repository.position(session, caller.project_id, after)
        if start is None:
            raise job_not_found(after)
    statuses = from_the_wire(status) if status in FILTERS else ()
    views, has_more = repository.list_jobs(
        session,
        caller.project_id,
        filters=repository.JobFilters(statuses=statuses),
        after=start,
        limit=JOBS_PER_PAGE,
    )
    names = names_of(session, [view.job.training_file_id for view in views])
    lines = [_line(view, names.get(view.job.training_file_id, "")) for view in views]
    return {
        "jobs": lines,
        "chosen": status if status in FILTERS else "",
        "after": after,
        "next": views[-1].job.id if has_more else None,
        "version": ";".join(
            f"{line.status}/{line.stage}/{line.step}/{line.queue_position}" for line in lines
        ),
        "live": any(Status(view.job.status) not in TERMINAL for view in views),
    }


def _line(view: JobView, file: str) -> JobLine:
    job = view.job
    status, stage = on_the_wire(job.status, job.stage)
    progress = job.progress or {}
    summary = (job.safety_report or {}).get("summary") or {}
    harmful = summary.get("harmful_score") or {}
    return JobLine(
        id=job.id,
        name=job.suffix or "",
        status="paused" if stage == "paused" else status,
        stage=job.stage,
        base=job.base_id,
        file=file,
        created_at=job.created_at,
        step=progress.get("step"),
        total_steps=progress.get("total_steps"),
        queue_position=view.queue_position,
        harmful_before=harmful.get("before"),
        harmful_after=harmful.get("after"),
    )
