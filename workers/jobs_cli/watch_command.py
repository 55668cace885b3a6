"""`autoclave jobs watch`, and what `create --watch` does after creating."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from workers.jobs_cli.options import (
    DEFAULT_BASE_URL,
    EXIT_INTERRUPTED,
    BaseUrlOption,
    IntervalOption,
    JobArgument,
    JsonOption,
    KeyFileOption,
    PatienceOption,
    connect,
    console,
)

if TYPE_CHECKING:
    from workers.jobs_cli.client import Client


def watch(  # noqa: PLR0917  typer passes options by name
    job_id: JobArgument,
    interval: IntervalOption = 1.0,
    patience: PatienceOption = 300.0,
    as_json: JsonOption = False,
    base_url: BaseUrlOption = DEFAULT_BASE_URL,
    api_key_file: KeyFileOption = None,
) -> None:
    """Watch a job to its end. Exit status: 0 succeeded, 1 failed, 2 cancelled.

    Ctrl-C leaves the job running."""
    with connect(base_url, api_key_file) as client:
        watch_to_the_end(client, job_id, as_json=as_json, interval=interval, patience=patience)


def watch_to_the_end(client: Client, job_id: str, *, as_json: bool, interval: float, patience: float) -> None:
    """Raises typer.Exit with the job's exit status, and what `watching.watch` raises."""
    from workers.jobs_cli.display import JsonLines, Lines, Screen
    from workers.jobs_cli.watching import EXIT_STATUS
    from workers.jobs_cli.watching import watch as watch_job

    out = console()
    display = JsonLines() if as_json else Screen(out) if out.is_terminal else Lines()
    try:
        with display:
            job = watch_job(client, job_id, display, interval_seconds=interval, patience_seconds=patience)
    except KeyboardInterrupt:
        typer.echo(
            f"no longer watching; the job goes on. To watch again: autoclave jobs watch {job_id}; "
            f"to stop the job: autoclave jobs cancel {job_id}",
            err=True,
        )
        raise typer.Exit(EXIT_INTERRUPTED) from None
    raise typer.Exit(EXIT_STATUS[job["status"]])
