"""`/dashboard/safety`: how much harm is removed, over all jobs."""

from __future__ import annotations

import math
import time
from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from service.dashboard import safety_drawings
from service.dashboard.page_route import OperatorPage
from service.dashboard.queries.names import names_of_projects
from service.dashboard.rendering import page
from service.dashboard.safety_view import SHOWN_QUANTILES, STEADY_POINTS, view
from service.deps import DatabaseDep
from service.safety import repository

router = APIRouter(route_class=OperatorPage, include_in_schema=False)

PERIODS = {"7": "7 days", "30": "30 days", "90": "90 days", "365": "a year", "all": "all time"}
DEFAULT_PERIOD = "90"
DEFAULT_LOSS = 5.0
LONGEST_LIST = 20
DAY_SECONDS = 24 * 3600.0


@router.get("/dashboard/safety")
def show_safety(
    request: Request,
    database: DatabaseDep,
    days: Annotated[str, Query(max_length=10)] = DEFAULT_PERIOD,
    base: Annotated[str, Query(max_length=255)] = "",
    loss: Annotated[str, Query(max_length=20)] = "",
) -> Response:
    days = days if days in PERIODS else DEFAULT_PERIOD
    since = None if days == "all" else time.time() - int(days) * DAY_SECONDS
    max_loss = _points(loss)
    with database.snapshot() as session:
        bases = repository.bases(session)
        rows = repository.measured(session, since=since, base_id=base or None)
        shown = view(
            rows,
            [each for each in bases if base in ("", each.id)],
            max_loss=max_loss,
            longest=LONGEST_LIST,
        )
        listed = {row.job_id for row in (*shown.refused, *shown.waived, *shown.lossy)}
        about = repository.about(session, sorted(listed))
        projects = names_of_projects(session, {each.project_id for each in about.values()})
        is_empty = not rows and not repository.num_measured(session)
    return page(
        request,
        "operator/safety.html.j2",
        shown=shown,
        drawing=safety_drawings.distributions(
            shown.scores_before, shown.scores_after, (shown.before, shown.after)
        ),
        control_lines=[
            safety_drawings.control_line(control, number) for number, control in enumerate(shown.controls)
        ],
        distributions=[each for each in (shown.before, shown.after) if each is not None],
        quantiles=SHOWN_QUANTILES,
        steady_points=STEADY_POINTS,
        about=about,
        projects=projects,
        bases=[each.id for each in bases],
        periods=PERIODS,
        days=days,
        base=base,
        max_loss=max_loss,
        is_empty=is_empty,
        is_cut=len(rows) >= repository.MOST_JOBS,
        longest=LONGEST_LIST,
    )


def _points(text: str) -> float:
    """What cannot be read is the default: a bound for a list, and nothing depends on it."""
    try:
        value = float(text)
    except ValueError:
        return DEFAULT_LOSS
    return value if math.isfinite(value) and -100 <= value <= 100 else DEFAULT_LOSS
