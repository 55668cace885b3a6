"""/v1/fine_tuning/jobs: create, list, retrieve, cancel, pause, resume, events, safety report."""

from __future__ import annotations

import re
import time
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request

from service.deps import AuthenticatedRoute, CallerDep, DatabaseDep
from service.errors import not_found
from service.jobs import creation, repository, service
from service.jobs.metrics import MIN_POINTS, read_points, thinned
from service.jobs.requests import CreateJob
from service.jobs.schemas import EventList, EventObject, JobList, JobObject, MetricsList

router = APIRouter(prefix="/fine_tuning/jobs", tags=["fine-tuning"], route_class=AuthenticatedRoute)

Limit = Annotated[int, Query(ge=1, le=1000)]


@router.post("")
def create_job(body: CreateJob, database: DatabaseDep, caller: CallerDep) -> JobObject:
    with database.transaction() as session:
        job_id = creation.create_job(
            session,
            body,
            project_id=caller.project_id,
            organization_id=caller.organization_id,
            now=time.time(),
        )
        return JobObject.of(service.get_job(session, caller.project_id, job_id))


@router.get("")
def list_jobs(
    request: Request,
    database: DatabaseDep,
    caller: CallerDep,
    after: str | None = None,
    limit: Limit = 20,
) -> JobList:
    """Newest first. `metadata[key]=value` filters (several must all match); `metadata=null` finds jobs
    without metadata."""
    with database.snapshot() as session:
        start = None
        if after is not None:
            start = repository.position(session, caller.project_id, after)
            if start is None:
                raise service.job_not_found(after, param="after")
        # A "deepObject" in OpenAPI's words, which FastAPI does not parse.
        pairs = {
            match[1]: value
            for name, value in request.query_params.multi_items()
            if (match := re.fullmatch(r"metadata\[(.*)\]", name, re.DOTALL))
        }
        views, has_more = repository.list_jobs(
            session,
            caller.project_id,
            metadata=pairs,
            without_metadata=request.query_params.get("metadata") == "null",
            after=start,
            limit=limit,
        )
        return JobList(data=[JobObject.of(view) for view in views], has_more=has_more)


@router.get("/{job_id}")
def retrieve_job(job_id: str, database: DatabaseDep, caller: CallerDep) -> JobObject:
    with database.snapshot() as session:
        return JobObject.of(service.get_job(session, caller.project_id, job_id))


@router.post("/{job_id}/cancel")
def cancel_job(job_id: str, database: DatabaseDep, caller: CallerDep) -> JobObject:
    with database.transaction() as session:
        service.cancel_job(session, project_id=caller.project_id, job_id=job_id, now=time.time())
        return JobObject.of(service.get_job(session, caller.project_id, job_id))


@router.post("/{job_id}/pause")
def pause_job(job_id: str, database: DatabaseDep, caller: CallerDep) -> JobObject:
    """A queued job waits until it is resumed; a running one stops at its next step, keeps what it has
    done and frees its accelerator. Shown as status `queued` with stage `paused`."""
    with database.transaction() as session:
        service.pause_job(session, project_id=caller.project_id, job_id=job_id, now=time.time())
        return JobObject.of(service.get_job(session, caller.project_id, job_id))


@router.post("/{job_id}/resume")
def resume_job(job_id: str, database: DatabaseDep, caller: CallerDep) -> JobObject:
    """Back into the queue, from the newest checkpoint."""
    with database.transaction() as session:
        service.resume_job(session, project_id=caller.project_id, job_id=job_id, now=time.time())
        return JobObject.of(service.get_job(session, caller.project_id, job_id))


@router.get("/{job_id}/events")
def list_events(
    job_id: str, database: DatabaseDep, caller: CallerDep, after: str | None = None, limit: Limit = 20
) -> EventList:
    """Newest first."""
    with database.snapshot() as session:
        service.get_job(session, caller.project_id, job_id)
        start = None
        if after is not None:
            start = repository.event_position(session, job_id, after)
            if start is None:
                raise not_found("event", after, param="after", code="event_not_found")
        events, has_more = repository.list_events(session, job_id, after=start, limit=limit)
        return EventList(data=[EventObject.of(event) for event in events], has_more=has_more)


@router.get("/{job_id}/metrics")
def list_metrics(
    job_id: str,
    database: DatabaseDep,
    caller: CallerDep,
    max_points: Annotated[int, Query(ge=MIN_POINTS, le=10_000)] = 1000,
) -> MetricsList:
    """The training curve, a point per step, oldest first. Of more than `max_points` steps both ends and,
    of equal parts between them, the lowest and the highest loss are kept."""
    with database.snapshot() as session:
        service.get_job(session, caller.project_id, job_id)
        points = read_points(session, job_id)
    return MetricsList.of(job_id, thinned(points, max_points), num_steps=len(points))


@router.get("/{job_id}/safety_report")
def safety_report(job_id: str, database: DatabaseDep, caller: CallerDep) -> dict[str, Any]:
    """What went in and what was measured, also for a job that the safety gate refused."""
    with database.snapshot() as session:
        return service.safety_report(session, project_id=caller.project_id, job_id=job_id)
