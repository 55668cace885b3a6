"""`autoclave admin priority`: whose jobs go first, and on which workers."""

from __future__ import annotations

import re
import time
from typing import Annotated

import typer

from autoclave.errors import InputError
from workers.cli_database import DataDirOption, transaction
from workers.cli_quota import find_project


def priority(
    project: Annotated[str, typer.Argument(help="Id (proj_...) or name of the project.")],
    set_: Annotated[
        int | None,
        typer.Option(
            "--set", min=-100, max=100, help="Higher goes first, whatever others wait for; 0 is usual."
        ),
    ] = None,
    worker_class: Annotated[
        str | None,
        typer.Option(
            help="Run its jobs on workers of this class (WORKER_CLASS) alone; 'any' takes that back."
        ),
    ] = None,
    data_dir: DataDirOption = None,
) -> None:
    """Show a project's queue, one `name value` a line; or change its priority and class of workers first."""
    from service.audit.log import operator
    from service.scheduling.lanes import recent_seconds
    from service.scheduling.priorities import change, look

    if worker_class is not None and not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,62}", worker_class):
        raise InputError(f"--worker-class: {worker_class!r} is no class: a-z, 0-9 and -, 63 at most")
    now = time.time()
    with transaction(data_dir) as session:
        project_id = find_project(session, project)
        if set_ is not None or worker_class is not None:
            chosen = "" if worker_class == "any" else worker_class
            change(session, project_id, priority=set_, worker_class=chosen, actor=operator(), now=now)
        queue = look(session, project_id)
        shown = {
            "priority": -queue.rank,
            "worker_class": queue.worker_class or "any",
            "running": queue.num_running,
            "waiting": queue.num_waiting,
            "recent_seconds": round(recent_seconds(queue.recent, now=now), 1),
        }
    for name, value in shown.items():
        typer.echo(f"{name} {value}")
