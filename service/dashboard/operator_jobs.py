"""`/dashboard/jobs`: every project's jobs."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from service.dashboard.operator_words import STATUSES, WORDS
from service.dashboard.page_route import OperatorPage
from service.dashboard.queries.jobs import JobSearch, all_bases, find_jobs, place_of
from service.dashboard.queries.names import projects_called
from service.dashboard.rendering import page
from service.deps import DatabaseDep

router = APIRouter(route_class=OperatorPage, include_in_schema=False)

JOBS_PER_PAGE = 50
Words = Annotated[str, Query(max_length=255)]


@router.get("/dashboard/jobs")
def show_jobs(
    request: Request,
    database: DatabaseDep,
    *,
    status: Words = "",
    base: Words = "",
    project: Words = "",
    q: Words = "",
    after: Words = "",
) -> Response:
    wanted = {"status": status, "base": base.strip(), "project": project.strip(), "q": q.strip()}
    given = {name: value for name, value in wanted.items() if value}
    with database.snapshot() as session:
        found = projects_called(session, wanted["project"]) if wanted["project"] else None
        search = JobSearch(
            status=status if status in STATUSES else None,
            base_id=wanted["base"] or None,
            project_ids=None if found is None else tuple(found),
            words=wanted["q"] or None,
        )
        place = place_of(session, after) if after else None
        jobs, has_more = find_jobs(session, search, after=place, limit=JOBS_PER_PAGE)
        bases = all_bases(session)
    older = urlencode({**given, "after": jobs[-1].id}) if has_more else None
    return page(
        request,
        "operator/jobs.html.j2",
        jobs=jobs,
        wanted=wanted,
        filtered=bool(given),
        bases=bases,
        older=older,
        newest=urlencode(given) if place is not None else None,
        **WORDS,
    )
