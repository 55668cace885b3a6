"""The commands that look: list, show, events, metrics, report."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from workers.jobs_cli.errors import RefusedError
from workers.jobs_cli.options import (
    DEFAULT_BASE_URL,
    BaseUrlOption,
    JobArgument,
    JsonOption,
    KeyFileOption,
    PatienceOption,
    connect,
    console,
)

if TYPE_CHECKING:
    from workers.jobs_cli.client import Client

PAGE = 100


def list_jobs(  # noqa: PLR0917  typer passes options by name
    limit: Annotated[int, typer.Option(min=1, help="How many at most, newest first.")] = 20,
    status: Annotated[
        str | None,
        typer.Option(help="Only jobs in this state: queued, paused, running, succeeded, failed, cancelled."),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Only jobs on this base.")] = None,
    metadata: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Only jobs with it; may be repeated.")
    ] = None,
    as_json: JsonOption = False,
    base_url: BaseUrlOption = DEFAULT_BASE_URL,
    api_key_file: KeyFileOption = None,
) -> None:
    """The project's jobs, newest first, with what was measured. `--json` gives an object per line."""
    from workers.jobs_cli import formats
    from workers.jobs_cli.display import state_word

    filters: dict[str, Any] = {"status": status, "model": model}
    filters |= {f"metadata[{key}]": value for key, value in pairs(metadata or [], "--metadata").items()}
    with connect(base_url, api_key_file) as client:
        wanted = {name: value for name, value in filters.items() if value is not None}
        jobs = list(_pages(client, "/fine_tuning/jobs", wanted, limit=limit))
    if as_json:
        for job in jobs:
            typer.echo(json.dumps(job))
        return
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("job", "created (UTC)", "status", "harmful score", "base", "fine-tuned model"):
        table.add_column(column, no_wrap=column == "job", overflow="fold")
    for job in jobs:
        table.add_row(
            job["id"],
            formats.moment(job["created_at"]),
            state_word(job),
            formats.three_scores(job["safety"]) or formats.UNKNOWN,
            formats.clean(job["model"]),
            formats.clean(job["fine_tuned_model"] or formats.UNKNOWN),
        )
    console().print(table)


def show(
    job_id: JobArgument,
    as_json: JsonOption = False,
    base_url: BaseUrlOption = DEFAULT_BASE_URL,
    api_key_file: KeyFileOption = None,
) -> None:
    """One job: state, loss so far, what was measured, its newest events."""
    import time

    from workers.jobs_cli.blocks import levels_for
    from workers.jobs_cli.client import path_of
    from workers.jobs_cli.display import job_table
    from workers.jobs_cli.watching import Watched

    with connect(base_url, api_key_file) as client:
        job = client.get(path_of(job_id))
        if as_json:
            typer.echo(json.dumps(job, indent=2))
            return
        points = client.get(path_of(job_id, "metrics"), {"max_points": 500})["data"]
        events = client.get(path_of(job_id, "events"), {"limit": PAGE})["data"]
    watched = Watched(job, losses=[point["train_loss"] for point in points])
    watched.messages = [event for event in reversed(events) if event["type"] == "message"]
    out = console()
    out.print(job_table(watched, width=out.width, levels=levels_for(out.encoding), now=time.time()))


def events(  # noqa: PLR0917  typer passes options by name
    job_id: JobArgument,
    limit: Annotated[int, typer.Option(min=1, help="How many of the newest.")] = 100,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="All of them, and those to come, until the job has ended.")
    ] = False,
    patience: PatienceOption = 300.0,
    as_json: JsonOption = False,
    base_url: BaseUrlOption = DEFAULT_BASE_URL,
    api_key_file: KeyFileOption = None,
) -> None:
    """The job's log, oldest first. `--json` gives an object per line."""
    from workers.jobs_cli.client import path_of
    from workers.jobs_cli.display import Lines, event_line
    from workers.jobs_cli.following import follow as follow_events
    from workers.jobs_cli.patience import Patience

    with connect(base_url, api_key_file) as client:
        found: Iterator[dict[str, Any]]
        if follow:
            client.get(path_of(job_id))  # a server that was never there is not waited for
            lines = Lines()
            waiting = Patience(patience, on_trouble=lines.trouble, on_return=lines.back)
            found = follow_events(client, job_id, waiting)
        else:
            newest = list(_pages(client, path_of(job_id, "events"), {}, limit=limit))
            found = reversed(newest)
        for event in found:
            typer.echo(json.dumps(event) if as_json else event_line(event))


def metrics(
    job_id: JobArgument,
    points: Annotated[int, typer.Option(min=4, max=10_000, help="Of more steps, so many are shown.")] = 1000,
    as_json: JsonOption = False,
    base_url: BaseUrlOption = DEFAULT_BASE_URL,
    api_key_file: KeyFileOption = None,
) -> None:
    """The training curve: as plots on a terminal, as tab-separated columns in a pipe."""
    from workers.jobs_cli.client import path_of
    from workers.jobs_cli.curves import columns, curves_table

    with connect(base_url, api_key_file) as client:
        answer = client.get(path_of(job_id, "metrics"), {"max_points": points})
    if as_json:
        typer.echo(json.dumps(answer, indent=2))
        return
    out = console()
    if out.is_terminal:
        from workers.jobs_cli.blocks import levels_for

        out.print(curves_table(answer["data"], width=out.width, levels=levels_for(out.encoding)))
        return
    for line in columns(answer["data"]):
        typer.echo(line)


def report(
    job_id: JobArgument,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Save the report as a page, too.")
    ] = None,
    as_json: JsonOption = False,
    base_url: BaseUrlOption = DEFAULT_BASE_URL,
    api_key_file: KeyFileOption = None,
) -> None:
    """The safety report: harmful score before and after, controls, strengths tried, what was pruned."""
    from workers.jobs_cli.blocks import levels_for
    from workers.jobs_cli.client import path_of
    from workers.jobs_cli.report_table import report_tables

    with connect(base_url, api_key_file) as client:
        answer = client.get(path_of(job_id, "safety_report"))
        if html is not None:
            _save_page(client, path_of(job_id, "report"), html)
    if as_json:
        typer.echo(json.dumps(answer, indent=2))
        return
    out = console()
    for table in report_tables(answer, levels=levels_for(out.encoding)):
        out.print(table)
        out.print()


def pairs(texts: list[str], option: str) -> dict[str, str]:
    """Of KEY=VALUE. Raises RefusedError."""
    found: dict[str, str] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise RefusedError(f'{option} takes KEY=VALUE, got "{text}"')
        found[key] = value
    return found


def _pages(client: Client, path: str, filters: dict[str, Any], *, limit: int) -> Iterator[dict[str, Any]]:
    """At most `limit` objects of a list, newest first."""
    after: dict[str, Any] = {}
    while limit > 0:
        page = client.get(path, filters | after | {"limit": min(limit, PAGE)})
        yield from page["data"]
        limit -= len(page["data"])
        if not page["has_more"] or not page["data"]:
            return
        after = {"after": page["data"][-1]["id"]}


def _save_page(client: Client, path: str, target: Path) -> None:
    """Raises RefusedError: no such route, or what came is no page."""
    try:
        kind, text = client.text(path, accept="text/html")
    except RefusedError as error:
        if error.code != "unknown_url":
            raise
        raise RefusedError("this server makes no HTML reports (404); the table needs no --html") from error
    if not kind.startswith("text/html"):
        raise RefusedError(f"the server's report is no HTML but {kind or 'of no type'}")
    part = target.with_name(f".{target.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(target)
    typer.echo(f"saved {target}", err=True)
