"""`autoclave admin quota`: what a project may use."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from autoclave.errors import InputError
from workers.cli_database import DataDirOption, database_url, transaction

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from service.quotas.limits import Quota


def _limit(help: str) -> Any:
    return typer.Option(min=0, help=f"{help} 0 is unlimited.")


def quota(  # noqa: PLR0917 - typer passes options by name
    project: Annotated[str, typer.Argument(help="Id (proj_...) or name of the project.")],
    storage_bytes: Annotated[int | None, _limit("Files, parts and released adapters.")] = None,
    concurrent_jobs: Annotated[int | None, _limit("Jobs that run at once.")] = None,
    queued_jobs: Annotated[int | None, _limit("Jobs that wait, paused ones included.")] = None,
    jobs_per_day: Annotated[int | None, _limit("Jobs created in any 24 hours.")] = None,
    gpu_seconds: Annotated[int | None, _limit("Running time in a calendar month (UTC).")] = None,
    requests_per_minute: Annotated[int | None, _limit("Reads, writes and uploads, each.")] = None,
    reset: Annotated[bool, typer.Option("--reset", help="Go back to the defaults first.")] = False,
    data_dir: DataDirOption = None,
) -> None:
    """Show what a project uses and may use, one `name used limit` a line; or change its limits first."""
    from service.audit.log import operator
    from service.quotas.service import change_quota, quotas_in_use, requests_limit

    given = {
        "storage_bytes": storage_bytes,
        "concurrent_jobs": concurrent_jobs,
        "queued_jobs": queued_jobs,
        "jobs_per_day": jobs_per_day,
        "gpu_seconds": gpu_seconds,
        "requests_per_minute": requests_per_minute,
    }
    changes = {name: value for name, value in given.items() if value is not None}
    default = _default(database_url(data_dir))
    now = time.time()
    with transaction(data_dir) as session:
        project_id = find_project(session, project)
        if changes or reset:
            change_quota(session, project_id, changes, reset=reset, actor=operator(), now=now)
        uses = quotas_in_use(session, project_id, default, now=now)
        requests = requests_limit(session, project_id)
    for name, use in uses.items():
        typer.echo(f"{name} {use.used} {'unlimited' if use.limit is None else use.limit}")
    shown = "default" if requests is None else requests or "unlimited"
    typer.echo(f"requests_per_minute - {shown}")


def _default(url: str) -> Quota:
    """As this command's environment says."""
    from service.quotas.limits import default_quota
    from service.settings import Settings

    return default_quota(Settings(database_url=url, storage_url="not used"))


def find_project(session: Session, wanted: str) -> str:
    """Raises InputError."""
    from sqlalchemy import or_, select

    from service.models import Project

    query = select(Project.id).where(or_(Project.id == wanted, Project.name == wanted))
    found = list(session.scalars(query))
    if len(found) != 1:
        there = f"{len(found)} projects are called {wanted!r}; give the id of one of them"
        raise InputError(there if found else f"there is no project {wanted!r}")
    return found[0]
