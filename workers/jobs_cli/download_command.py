"""`autoclave jobs download`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
    from workers.jobs_cli.downloads import OnBytes


def download(  # noqa: PLR0917  typer passes options by name
    job_id: JobArgument,
    out: Annotated[
        Path | None,
        typer.Option(help="The tar to write, or with --extract the new folder (default: JOB-adapter[.tar])."),
    ] = None,
    file: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only this file of the package, e.g. README.md.")
    ] = None,
    extract: Annotated[bool, typer.Option("--extract", help="Unpack; the tar is not kept.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
    patience: PatienceOption = 60.0,
    as_json: JsonOption = False,
    base_url: BaseUrlOption = DEFAULT_BASE_URL,
    api_key_file: KeyFileOption = None,
) -> None:
    """Fetch the adapter of a job that succeeded. Goes on after a break, and compares the SHA-256."""
    from workers.jobs_cli import downloads
    from workers.jobs_cli.client import path_of
    from workers.jobs_cli.patience import Patience

    if extract and file is not None:
        raise RefusedError("--extract unpacks the tar; it does not go with --file")
    path = path_of(job_id, "adapter", *(() if file is None else ("files", file)))
    default = f"{job_id}-adapter" if extract else f"{job_id}-adapter.tar"
    target = out or Path(default if file is None else Path(file).name)
    if extract and target.exists():
        raise RefusedError(f"{target} is there already; name another folder with --out")
    if target.is_dir():
        raise RefusedError(f"{target} is a folder; name the file to write with --out")
    if target.exists() and not force:
        raise RefusedError(f"{target} is there already; --force replaces it")
    target.parent.mkdir(parents=True, exist_ok=True)

    def lost(reason: str) -> None:
        typer.echo(f"lost the server, trying again: {reason}", err=True)

    waiting = Patience(patience, on_trouble=lost, on_return=lambda: typer.echo("going on", err=True))
    # Under a name that nobody else uses: the tar of an earlier command may lie here.
    archive = target.with_name(f".{target.name}.tar") if extract else target
    with connect(base_url, api_key_file) as client, _progress() as on_bytes:
        content = downloads.download(client, path, archive, waiting, on_bytes=on_bytes)
    if extract:
        try:
            downloads.extract(archive, target)
        finally:
            archive.unlink()
    if as_json:
        typer.echo(json.dumps({"path": str(target), "sha256": content.sha256, "bytes": content.num_bytes}))
    else:
        typer.echo(f"{content.sha256}  {target}")


@contextmanager
def _progress() -> Iterator[OnBytes]:
    """On standard error, and only where somebody looks."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    err = console(stderr=True)
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, disable=not err.is_terminal, transient=True) as bars:
        task = bars.add_task("adapter", total=None)
        yield lambda here, total: bars.update(task, completed=here, total=total)
