"""Making a job with a form that says beforehand what it will take."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from anyio import to_thread
from fastapi import APIRouter, Request
from sqlalchemy.orm import Session
from starlette.responses import RedirectResponse, Response

from service.catalog import repository as catalog
from service.catalog.model_limits import limits_of
from service.dashboard.job_form import PLAIN, form_fields, problem_of, request_of, values_of
from service.dashboard.page_route import UserDep, UserPage
from service.dashboard.permission import may, require
from service.dashboard.rendering import page
from service.datasets import endpoints as datasets
from service.datasets.schemas import Estimate
from service.db import Database
from service.deps import Caller, DatabaseDep, StorageDep
from service.errors import ApiError
from service.files import repository as files
from service.files.schemas import PURPOSE
from service.jobs import endpoints as jobs
from service.jobs.cloning import inputs_of
from service.jobs.service import get_job
from service.models import AlignedBase
from service.quotas.admission import AdmissionDep
from service.repeats import AnsweredBefore, Submission


@dataclass(frozen=True)
class BaseChoice:
    """`about` says how it was aligned, and what came of it."""

    id: str
    about: str

    @classmethod
    def of(cls, base: AlignedBase) -> BaseChoice:
        floor = (base.measurements or {}).get("floor")
        score = "" if floor is None else f", {floor['harmful_score']:.1f} % harmful by itself"
        return cls(base.id, f"aligned by {base.alignment_method}{score}")


router = APIRouter(route_class=UserPage, include_in_schema=False)

MAX_FILES = 500
NO_ESTIMATE: dict[str, Any] = {"estimate": None, "estimate_problem": None}
ONCE = "once"
"""Name of the field that makes two clicks one job."""


@router.get("/app/new")
def show_form(
    *,
    request: Request,
    database: DatabaseDep,
    caller: UserDep,
    file: str = "",
    model: str = "",
    clone: str = "",
) -> Response:
    require(caller, "POST", "/fine_tuning/jobs")
    values: dict[str, str] = {}
    left_out: list[str] = []
    with database.snapshot() as session:
        if clone:
            inputs = inputs_of(get_job(session, caller.project_id, clone).job)
            values = values_of(inputs)
            left_out = [name for name in ("integrations", "adapter_expires_after") if inputs.get(name)]
        values |= {name: text for name, text in (("training_file", file), ("model", model)) if text}
        form = _form(session, caller, values, {})
    return page(request, "user/new_job.html.j2", **form | {"left_out": left_out}, **NO_ESTIMATE)


@router.post("/app/new")
async def create_job(
    request: Request, database: DatabaseDep, storage: StorageDep, caller: UserDep, admission: AdmissionDep
) -> Response:
    """With a field `estimate`, as its button sends it where no script runs, nothing is made."""
    require(caller, "POST", "/fine_tuning/jobs")
    values = await _sent(request)
    if "estimate" in values:
        return await _with_estimate(request, database, storage, caller, values)
    body, problems = request_of(values)
    if body is not None:
        once = values.get(ONCE, "")[:255] or None
        submission = Submission(project_id=caller.project_id, route="/app/new", key=once, retry_count=None)
        make = partial(
            jobs.create_job,
            request=request,
            body=body,
            database=database,
            caller=caller,
            submission=submission,
            admission=admission,
        )
        try:
            job = await to_thread.run_sync(make)
            return RedirectResponse(f"/app/jobs/{job.id}", status_code=303)
        except AnsweredBefore as first:
            return RedirectResponse(f"/app/jobs/{json.loads(first.body)['id']}", status_code=303)
        except ApiError as error:
            problems = problem_of(error)
    form = await to_thread.run_sync(_form_now, database, caller, values, problems)
    return page(request, "user/new_job.html.j2", status=400, **form, **NO_ESTIMATE)


@router.post("/app/new/estimate")
async def show_estimate(
    request: Request, database: DatabaseDep, storage: StorageDep, caller: UserDep
) -> Response:
    """The fragment beside the form."""
    found, problem = await _estimate(request, database, storage, caller, await _sent(request))
    return page(request, "user/estimate.html.j2", estimate=found, estimate_problem=problem)


async def _with_estimate(
    request: Request, database: Database, storage: Any, caller: Caller, values: dict[str, str]
) -> Response:
    found, problem = await _estimate(request, database, storage, caller, values)
    form = await to_thread.run_sync(_form_now, database, caller, values, {})
    return page(request, "user/new_job.html.j2", **form, estimate=found, estimate_problem=problem)


async def _estimate(
    request: Request, database: Database, storage: Any, caller: Caller, values: Mapping[str, str]
) -> tuple[Estimate | None, str | None]:
    require(caller, "POST", "/fine_tuning/estimate")
    body, problems = request_of(values)
    if body is None:
        known = {name: text for name, text in problems.items() if name not in ("model", "training_file")}
        return None, next(iter(known.values()), None)
    try:
        return await datasets.estimate_job(request, body, database, storage, caller), None
    except ApiError as error:
        return None, error.message


async def _sent(request: Request) -> dict[str, str]:
    form = await request.form()
    return {name: value for name, value in form.items() if isinstance(value, str)}


def _form_now(
    database: Database, caller: Caller, values: Mapping[str, str], problems: Mapping[str, str]
) -> dict[str, Any]:
    with database.snapshot() as session:
        return _form(session, caller, values, problems)


def _form(
    session: Session, caller: Caller, values: Mapping[str, str], problems: Mapping[str, str]
) -> dict[str, Any]:
    bases = catalog.list_bases(session)
    base = next((base for base in bases if base.id == values.get("model")), bases[0] if bases else None)
    own, _ = files.list_files(
        session, caller.project_id, purpose=PURPOSE, after=None, limit=MAX_FILES, ascending=False
    )
    main, advanced = ([], []) if base is None else form_fields(limits_of(base), values, problems)
    shown = {field.name for field in (*main, *advanced)} | {*PLAIN, "metadata"}
    return {
        "bases": [BaseChoice.of(base) for base in bases],
        "base": None if base is None else base.id,
        "files": own,
        "values": values,
        "main": main,
        "advanced": advanced,
        "open_advanced": any(field.value or field.problem for field in advanced),
        "problems": problems,
        "elsewhere": [text for name, text in problems.items() if name not in shown],
        "left_out": [],
        "once": values.get(ONCE) or secrets.token_urlsafe(16),
        "may_upload": may(caller, "POST", "/files"),
    }
