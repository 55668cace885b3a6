"""The page of one job, for its owner and for operators: the same templates over what each may see."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import Request
from sqlalchemy.orm import Session
from starlette.responses import HTMLResponse, JSONResponse, Response

from service.adapters import repository as adapters
from service.checkpoints import repository as checkpoints
from service.dashboard import curve, job_view, job_words
from service.dashboard.job_view import Deed
from service.dashboard.queries import job_page as queries
from service.dashboard.rendering import UNCHANGED, page
from service.db import Database
from service.errors import ApiError
from service.jobs import attempts
from service.jobs.metrics import read_points
from service.jobs.repository import JobView
from service.jobs.service import job_not_found
from service.models import Job, JobEvent
from service.pace import MIN_SECONDS
from service.reports.facts import facts_of
from service.reports.page import page_of
from service.reports.rendering import CONTENT_SECURITY_POLICY, render_report

EVENTS_AT_ONCE = 12
EVENTS_PER_PAGE = 100
_EVENTS_WHILE_WATCHING = 50


@dataclass(frozen=True)
class Viewer:
    """`project_id` None: an operator, who sees every job. `may` are the names of deeds, `download` (of the
    adapter) and `files` (of result files)."""

    root: str
    project_id: str | None
    may: frozenset[str]

    @property
    def is_operator(self) -> bool:
        return self.project_id is None


def show_job(
    request: Request,
    database: Database,
    viewer: Viewer,
    job_id: str,
    *,
    problem: str | None = None,
    status: int = 200,
) -> HTMLResponse:
    """`problem` is why something could not be done. Raises ApiError 404."""
    now = time.time()
    with database.snapshot() as session:
        view = _found(session, viewer, job_id)
        job = view.job
        points = read_points(session, job_id)
        events, has_older = queries.messages(session, job_id, limit=EVENTS_AT_ONCE)
        context = {
            **_live(session, viewer, view, now=now),
            **_parts(session, view, now=now),
            "events": events,
            "has_older": has_older,
            "few": curve.few(points),
            "sparklines": {
                name: curve.sparkline(points, name)
                for name in ("train_loss", "train_mean_token_accuracy", "learning_rate")
            },
            "trains": job.starts_from is None,
            "every": MIN_SECONDS,
            "settings": job_view.settings_of(job, queries.base_defaults(session, job.base_id)),
            "owner": queries.owner_names(session, job) if viewer.is_operator else None,
        }
        return page(request, "job/page.html.j2", status=status, problem=problem, **context)


def show_live(
    request: Request, database: Database, viewer: Viewer, job_id: str, *, seen: str, every: int
) -> Response:
    """What changed since the version `seen`: the summary, new events, and the rest where the job moved on.
    `every` is how many seconds the page waits between two questions. Raises ApiError 404."""
    now = time.time()
    every = request.state.pace.asked(every, now=time.monotonic())
    with database.glance() as session:
        position = queries.position(session, job_id, viewer.project_id)
    if position is None:
        raise job_not_found(job_id)
    if job_view.version_of(position, now=now) == seen:
        return UNCHANGED
    with database.snapshot() as session:
        view = _found(session, viewer, job_id)
        context = _live(session, viewer, view, now=now)
        after = job_view.seen_event(seen) or 0
        events: list[JobEvent] = []
        if after < position.newest_event:
            events, _ = queries.messages(session, job_id, after=after, limit=_EVENTS_WHILE_WATCHING)
        moved = bool(events) or seen.split(".")[:3] != context["summary"].version.split(".")[:3]
        if moved:
            context |= _parts(session, view, now=now)
        return page(request, "job/answer.html.j2", events=events, moved=moved, every=every, **context)


def show_events(
    request: Request, database: Database, viewer: Viewer, job_id: str, *, before: int | None
) -> HTMLResponse:
    """Older messages: lines for the list of the job's page, or a page of their own without JavaScript.
    Raises ApiError 404."""
    fragment = "hx-request" in request.headers
    with database.snapshot() as session:
        job = _found(session, viewer, job_id).job
        events, has_older = queries.messages(session, job_id, before=before, limit=EVENTS_PER_PAGE)
        template = "job/events.html.j2" if fragment else "job/events_page.html.j2"
        return page(request, template, viewer=viewer, job=job, events=events, has_older=has_older)


def curve_of(database: Database, viewer: Viewer, job_id: str, *, after: int) -> JSONResponse:
    """The steps behind `after`. Raises ApiError 404."""
    with database.glance() as session:
        position = queries.position(session, job_id, viewer.project_id)
        if position is None:
            raise job_not_found(job_id)
        points = read_points(session, job_id, after=after)
    columns = curve.columns(points, attempt=position.fencing_number)
    return JSONResponse(columns, headers={"cache-control": "no-store"})


def show_report(database: Database, viewer: Viewer, job_id: str, *, download: bool) -> Response:
    """The whole report, one page without anything around it. Raises ApiError 404."""
    with database.snapshot() as session:
        job = _found(session, viewer, job_id).job
        if job.safety_report is None:
            raise ApiError(404, f"Job {job_id} has no safety report yet.", code="report_not_ready")
        html = render_report(session, job)
    headers = {
        "content-security-policy": f"{CONTENT_SECURITY_POLICY}; frame-ancestors 'none'",
        "cache-control": "no-store",
    }
    if download:
        headers["content-disposition"] = f'attachment; filename="safety-report-{job_id}.html"'
    return HTMLResponse(html, headers=headers)


def _found(session: Session, viewer: Viewer, job_id: str) -> JobView:
    """Raises ApiError 404: somebody else's job is not there."""
    view = queries.find_job(session, job_id, viewer.project_id)
    if view is None:
        raise job_not_found(job_id)
    return view


def _live(session: Session, viewer: Viewer, view: JobView, *, now: float) -> dict[str, Any]:
    job = view.job
    position = queries.position(session, job.id, viewer.project_id)
    assert position is not None, job.id
    possible: list[Deed] = [deed for deed in job_view.deeds(job) if deed in viewer.may]
    return {
        "viewer": viewer,
        "job": job,
        "summary": job_view.summary(view, position, for_operator=viewer.is_operator, now=now),
        "deeds": possible,
        "releasable": viewer.is_operator and job_view.is_releasable(job),
        "model_id": view.fine_tuned_model,
    }


def _parts(session: Session, view: JobView, *, now: float) -> dict[str, Any]:
    """What changes when the job moves on."""
    job = view.job
    rows = attempts.list_attempts(session, job.id)
    kept = queries.checkpoints(session, job.id)
    releases = checkpoints.releases(session, job.project_id, [row.id for row in kept])
    report = job.safety_report
    return {
        "report": None if report is None else page_of(report, facts_of(session, job)),
        "attempts": [(row, job_words.ending(row)) for row in rows],
        "files": queries.files(session, [job.training_file_id, *filter(None, [job.validation_file_id])]),
        "dataset": job_view.dataset_figures(job, max_seq_length=_longest(job.spec)),
        "checkpoints": [(row, releases.get(row.id)) for row in kept],
        "copies": queries.copies(session, job),
        "results": queries.files(session, job.result_file_ids or []),
        "adapter": _adapter(session, view, now=now),
    }


def _longest(spec: Mapping[str, Any]) -> int | None:
    length: int | None = spec.get("train", {}).get("max_seq_length")
    return length


def _adapter(session: Session, view: JobView, *, now: float) -> dict[str, Any] | None:
    job: Job = view.job
    adapter = adapters.get_adapter_of_job(session, job.project_id, job.id)
    if adapter is None:
        return None
    expired = adapter.expires_at is not None and adapter.expires_at <= now
    return {
        "row": adapter,
        "is_there": adapter.deleted_at is None and not expired,
        "files": adapters.list_files(session, adapter.model_id),
    }
