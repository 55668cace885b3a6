"""Every page's router, in the order in which they are asked."""

from __future__ import annotations

from fastapi import APIRouter, Request

from service.dashboard import (
    operator_audit,
    operator_health,
    operator_job,
    operator_jobs,
    operator_now,
    operator_safety,
    operator_tenants,
    signing_in,
    user_files,
    user_home,
    user_job,
    user_models,
    user_new_job,
    user_preview,
)
from service.dashboard.page_route import OperatorPage, UserPage
from service.errors import ApiError

_elsewhere_in_app = APIRouter(route_class=UserPage, include_in_schema=False)
_elsewhere_in_dashboard = APIRouter(route_class=OperatorPage, include_in_schema=False)


@_elsewhere_in_app.get("/app/{path:path}")
@_elsewhere_in_dashboard.get("/dashboard/{path:path}")
def no_such_page(request: Request) -> None:
    raise ApiError(404, f"There is no page {request.url.path}.", code="unknown_url")


ROUTERS: tuple[APIRouter, ...] = (
    signing_in.router,
    user_home.router,
    user_files.router,
    user_models.router,
    user_new_job.router,
    user_preview.router,
    user_job.router,
    operator_job.router,
    operator_now.router,
    operator_jobs.router,
    operator_safety.router,
    operator_tenants.router,
    operator_health.router,
    operator_audit.router,
    _elsewhere_in_app,
    _elsewhere_in_dashboard,
)
