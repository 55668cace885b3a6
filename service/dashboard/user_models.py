"""A project's released adapters: list and delete. The job's page has the download (`user_job`)."""

from __future__ import annotations

import time

from fastapi import APIRouter, Request
from starlette.responses import RedirectResponse, Response

from service.adapters import deletion, repository
from service.adapters.downloads import released
from service.dashboard.page_route import UserDep, UserPage
from service.dashboard.permission import may, require
from service.dashboard.rendering import page
from service.deps import DatabaseDep, StorageDep

router = APIRouter(route_class=UserPage, include_in_schema=False)

MODELS_PER_PAGE = 50


@router.get("/app/models")
def show_models(
    request: Request, database: DatabaseDep, caller: UserDep, after: str | None = None
) -> Response:
    require(caller, "GET", "/models")
    now = time.time()
    with database.snapshot() as session:
        models, has_more = repository.list_adapters(
            session, caller.project_id, after=after, limit=MODELS_PER_PAGE, now=now
        )
    return page(
        request,
        "user/models.html.j2",
        models=models,
        after=after,
        next=models[-1].model_id if has_more else None,
        may_download=may(caller, "GET", "/fine_tuning/jobs/{job_id}/adapter"),
        may_delete=may(caller, "DELETE", "/models/{model}"),
    )


@router.post("/app/models/{job_id}/delete")
def delete_model(database: DatabaseDep, storage: StorageDep, caller: UserDep, job_id: str) -> Response:
    require(caller, "DELETE", "/models/{model}")
    now = time.time()
    with database.snapshot() as session:
        model_id = released(session, caller.project_id, job_id, now=now).model_id
    deletion.delete_model(
        database, storage, project_id=caller.project_id, model_id=model_id, actor=caller.actor, now=now
    )
    return RedirectResponse("/app/models", status_code=303)
