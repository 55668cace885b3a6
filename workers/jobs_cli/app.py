"""The commands of `autoclave jobs`, by name. httpx and rich are imported only when one of them works."""

from __future__ import annotations

import typer

from workers.jobs_cli import changing, reading
from workers.jobs_cli.download_command import download
from workers.jobs_cli.options import JobsGroup
from workers.jobs_cli.watch_command import watch

app = typer.Typer(cls=JobsGroup, no_args_is_help=True)
app.command("list")(reading.list_jobs)
app.command()(reading.show)
app.command()(changing.create)
app.command()(watch)
app.command()(reading.events)
app.command()(reading.metrics)
app.command()(reading.report)
app.command()(download)
app.command()(changing.cancel)
app.command()(changing.pause)
app.command()(changing.resume)
app.command()(changing.retry)
