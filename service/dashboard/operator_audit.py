"""`/dashboard/audit`: who did what, and the same as CSV."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Annotated
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, Query, Request
from sqlalchemy.orm import Session
from starlette.responses import Response, StreamingResponse

from service.audit.repository import AuditFilters, list_entries
from service.dashboard import csv_cells
from service.dashboard.page_route import OperatorPage
from service.dashboard.queries import audit
from service.dashboard.queries.names import names_of_keys, names_of_projects, projects_called
from service.dashboard.rendering import HEADERS, page
from service.deps import DatabaseDep
from service.errors import ApiError, invalid

router = APIRouter(route_class=OperatorPage, include_in_schema=False)

ENTRIES_PER_PAGE = 50
MOST_CSV_ROWS = 100_000
DAY_SECONDS = 24 * 3600.0
CSV_COLUMNS = (
    "time_utc",
    "actor",
    "action",
    "object_id",
    "organization_id",
    "project_id",
    "address",
    "request_id",
    "details",
)
Words = Annotated[str, Query(max_length=255)]


@dataclass(frozen=True)
class Asked:
    """The form's fields, as they were sent."""

    actor: str
    action: str
    project: str
    since: str
    until: str

    @property
    def given(self) -> dict[str, str]:
        return {name: value for name, value in vars(self).items() if value}

    def filters(self, session: Session) -> AuditFilters | None:
        """None: nothing can match. Raises ApiError 400 for a day that is none."""
        projects = tuple(projects_called(session, self.project)) if self.project else ()
        if self.project and not projects:
            return None
        until = _day(self.until)
        return AuditFilters(
            actors=(self.actor,) if self.actor else (),
            actions=(self.action,) if self.action else (),
            project_ids=projects,
            at_least=_day(self.since),
            less_than=None if until is None else until + DAY_SECONDS,
        )


def _asked(
    actor: Words = "", action: Words = "", project: Words = "", since: Words = "", until: Words = ""
) -> Asked:
    return Asked(*(value.strip() for value in (actor, action, project, since, until)))


AskedDep = Annotated[Asked, Depends(_asked)]


@router.get("/dashboard/audit")
def show_audit(request: Request, database: DatabaseDep, asked: AskedDep, after: Words = "") -> Response:
    problem = None
    with database.snapshot() as session:
        try:
            filters = asked.filters(session)
        except ApiError as error:
            filters, problem = None, error.message
        place = audit.sequence_of(session, after) if after else None
        entries, has_more = (
            ([], False)
            if filters is None
            else list_entries(session, filters, limit=ENTRIES_PER_PAGE, after=place)
        )
        projects = names_of_projects(session, {e.project_id for e in entries if e.project_id})
        keys = names_of_keys(session, {e.actor for e in entries})
        actions = audit.actions(session)
    return page(
        request,
        "operator/audit.html.j2",
        status=200 if problem is None else 400,
        problem=problem,
        entries=entries,
        projects=projects,
        keys=keys,
        actions=actions,
        asked=asked,
        filtered=bool(asked.given),
        older=urlencode({**asked.given, "after": entries[-1].id}) if has_more else None,
        newest=urlencode(asked.given) if place is not None else None,
        csv=f"/dashboard/audit.csv?{urlencode(asked.given)}",
        most_csv_rows=MOST_CSV_ROWS,
    )


@router.get("/dashboard/audit.csv")
def download_audit(database: DatabaseDep, asked: AskedDep) -> Response:
    with database.snapshot() as session:
        filters = asked.filters(session)

    def rows() -> Iterator[tuple[object, ...]]:
        yield CSV_COLUMNS
        for entry in [] if filters is None else audit.all_entries(database, filters, limit=MOST_CSV_ROWS):
            yield (
                datetime.fromtimestamp(entry.created_at, UTC).isoformat(timespec="milliseconds"),
                entry.actor,
                entry.action,
                entry.object_id,
                entry.organization_id,
                entry.project_id,
                entry.address,
                entry.request_id,
                json.dumps(entry.details, ensure_ascii=False, sort_keys=True),
            )

    name = f"audit-{datetime.fromtimestamp(time.time(), UTC):%Y-%m-%d}.csv"
    return StreamingResponse(
        csv_cells.lines(rows()),
        media_type="text/csv; charset=utf-8",
        headers={**HEADERS, "content-disposition": f'attachment; filename="{name}"'},
    )


def _day(text: str) -> float | None:
    """Its first second, UTC, since the epoch. Raises ApiError 400."""
    if not text:
        return None
    try:
        day = date.fromisoformat(text)
    except ValueError as error:
        raise invalid(f"{text!r} is no day such as 2026-11-21.", param="since") from error
    return datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()
