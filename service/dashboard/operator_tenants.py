"""`/dashboard/tenants`: what every project uses; and one project's quotas, keys and failures."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Form, Query, Request
from sqlalchemy.orm import Session
from starlette.responses import RedirectResponse, Response

from service import auth
from service.dashboard.operator_words import WHOSE_TURN
from service.dashboard.page_route import OperatorDep, OperatorPage
from service.dashboard.queries import tenants
from service.dashboard.queries.names import ProjectName
from service.dashboard.queries.tenants import TenantLine
from service.dashboard.quota_form import QUOTA_FIELDS, read_quotas
from service.dashboard.rendering import page
from service.deps import DatabaseDep
from service.errors import ApiError, not_found
from service.models import ApiKey
from service.quotas.limits import default_quota
from service.quotas.service import OWN_NUMBERS, change_quota, quotas_in_use, requests_in_use

router = APIRouter(route_class=OperatorPage, include_in_schema=False)

TENANTS_PER_PAGE = 100
ORDERS: dict[str, tuple[str, Callable[[TenantLine], float] | None]] = {
    "gpu": ("GPU time this month", lambda line: line.gpu_seconds),
    "storage": ("storage", lambda line: line.storage_bytes),
    "jobs": ("jobs now", lambda line: line.running + line.waiting),
    "failures": ("failed jobs", lambda line: line.num_failures),
    "name": ("name", None),
}


@router.get("/dashboard/tenants")
def show_tenants(
    request: Request,
    database: DatabaseDep,
    order: Annotated[str, Query(max_length=20)] = "gpu",
    q: Annotated[str, Query(max_length=255)] = "",
    start: Annotated[int, Query(ge=0, le=10**6)] = 0,
) -> Response:
    order = order if order in ORDERS else "gpu"
    now, words = time.time(), q.strip()
    with database.snapshot() as session:
        everybody = tenants.all_tenants(session, default_quota(request.state.settings), now=now)
        failures = tenants.failures(session, project_id=None, now=now)
    lines = [line for line in everybody if _matches(line.project, words.lower())]
    if (size := ORDERS[order][1]) is not None:
        lines.sort(key=size, reverse=True)
    end = start + TENANTS_PER_PAGE
    wanted = {"order": order, **({"q": words} if words else {})}
    return page(
        request,
        "operator/tenants.html.j2",
        lines=lines[start:end],
        num_tenants=len(everybody),
        num_running=sum(line.running for line in everybody),
        num_waiting=sum(line.waiting for line in everybody),
        storage_bytes=sum(line.storage_bytes for line in everybody),
        gpu_seconds=sum(line.gpu_seconds for line in everybody),
        failures=failures,
        whose_turn=WHOSE_TURN,
        orders=[(name, title) for name, (title, _) in ORDERS.items()],
        order=order,
        words=words,
        older=urlencode({**wanted, "start": end}) if len(lines) > end else None,
        newest=urlencode(wanted) if start else None,
    )


def _matches(project: ProjectName, words: str) -> bool:
    return (
        words in project.name.lower() or words in project.organization.lower() or words == project.id.lower()
    )


@router.get("/dashboard/tenants/{project_id}")
def show_tenant(request: Request, project_id: str, done: str = "") -> Response:
    return _tenant_page(request, project_id, done=done)


@router.post("/dashboard/tenants/{project_id}/quota")
def set_quota(
    request: Request,
    database: DatabaseDep,
    operator: OperatorDep,
    project_id: str,
    *,
    storage_bytes: Annotated[str, Form(max_length=40)] = "",
    concurrent_jobs: Annotated[str, Form(max_length=40)] = "",
    queued_jobs: Annotated[str, Form(max_length=40)] = "",
    jobs_per_day: Annotated[str, Form(max_length=40)] = "",
    gpu_seconds: Annotated[str, Form(max_length=40)] = "",
    requests_per_minute: Annotated[str, Form(max_length=40)] = "",
) -> Response:
    """All of the project's own numbers, as the form shows them: an empty field is the default again."""
    given = {
        "storage_bytes": storage_bytes,
        "concurrent_jobs": concurrent_jobs,
        "queued_jobs": queued_jobs,
        "jobs_per_day": jobs_per_day,
        "gpu_seconds": gpu_seconds,
        "requests_per_minute": requests_per_minute,
    }
    try:
        numbers = read_quotas(given)
    except ApiError as error:
        return _tenant_page(request, project_id, given=given, problem=error)
    with database.transaction() as session:
        _require(session, project_id)
        before = {
            name: value
            for name, value in tenants.own_numbers(session, project_id, OWN_NUMBERS).items()
            if value is not None
        }
        if numbers != before:
            change_quota(session, project_id, numbers, reset=True, actor=operator.actor, now=time.time())
    return RedirectResponse(f"/dashboard/tenants/{project_id}?done=quota", status_code=303)


@router.post("/dashboard/tenants/{project_id}/keys/{key_id}/revoke")
def revoke_key(
    database: DatabaseDep,
    operator: OperatorDep,
    project_id: str,
    key_id: str,
) -> Response:
    with database.transaction() as session:
        key = session.get(ApiKey, key_id)
        if key is None or key.project_id != project_id:
            raise not_found("API key", key_id, param="key_id", code="api_key_not_found")
        auth.revoke_api_key(session, key_id=key_id, now=time.time(), actor=operator.actor)
    return RedirectResponse(f"/dashboard/tenants/{project_id}?done=revoked", status_code=303)


DONE = {
    "quota": "The quotas are set. Requests per minute count with them within ten seconds.",
    "revoked": "The key is revoked: its next request is refused, and pages opened with it are signed out.",
}


def _tenant_page(
    request: Request,
    project_id: str,
    *,
    done: str = "",
    given: dict[str, str] | None = None,
    problem: ApiError | None = None,
) -> Response:
    """`given` are the form's fields as they were sent, where they were refused."""
    now, default = time.time(), default_quota(request.state.settings)
    with request.state.database.snapshot() as session:
        project, created_at = _require(session, project_id)
        uses = quotas_in_use(session, project_id, default, now=now)
        own = tenants.own_numbers(session, project_id, OWN_NUMBERS)
        keys = tenants.keys_of(session, project_id)
        failures = tenants.failures(session, project_id=project_id, now=now)
    requests = requests_in_use(request.state.rate_limiter, project_id)
    filled: dict[str, Any] = given or {name: "" if value is None else value for name, value in own.items()}
    return page(
        request,
        "operator/tenant.html.j2",
        status=200 if problem is None else problem.status,
        project=project,
        created_at=created_at,
        uses=uses,
        requests=requests,
        fields=QUOTA_FIELDS,
        filled=filled,
        default={**vars(default), "requests_per_minute": None},
        problem=problem,
        keys=keys,
        failures=failures,
        whose_turn=WHOSE_TURN,
        done=DONE.get(done),
        now=now,
    )


def _require(session: Session, project_id: str) -> tuple[ProjectName, float]:
    """Raises ApiError 404."""
    found = tenants.find_project(session, project_id)
    if found is None:
        raise not_found("project", project_id, param="project_id", code="project_not_found")
    return found
