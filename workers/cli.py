"""The console script `autoclave`: the library's commands, and those that run and administer the service.

Heavy imports stay inside the commands: this starts at once, and works in the API image, which holds
neither torch nor Celery.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from autoclave.cli import app
from workers.cli_admin import admin
from workers.cli_base import base
from workers.cli_database import DataDirOption
from workers.cli_priority import priority
from workers.cli_quota import quota
from workers.jobs_cli.app import app as jobs

DEFAULT_DATA_DIR = Path("autoclave-data")

app.add_typer(
    admin,
    name="admin",
    help="Migrate the database; organizations, projects, keys, quotas, priorities, bases, the audit log.",
)
admin.command()(quota)
app.add_typer(jobs, name="jobs", help="Create, watch and fetch jobs over the API (docs/jobs-cli.md).")
admin.command()(priority)
app.add_typer(base, name="base", help="Add, check, list and retire the models that jobs start from.")

HostOption = Annotated[str, typer.Option(help="Address to listen on.")]
PortOption = Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")]


PublicOption = Annotated[
    bool,
    typer.Option(
        "--allow-public",
        help="Listen where other machines reach it, also while a key is valid that nobody asked for.",
    ),
]


@app.command()
def up(
    host: HostOption = "127.0.0.1",
    port: PortOption = 8000,
    allow_public: PublicOption = False,
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
) -> None:
    """Start the whole service (API, worker, broker, SQLite, folder storage) until Ctrl-C.

    Prints the URL, and on the first start of a data directory an API key.
    """
    from workers.up import run_until_stopped

    assert data_dir is not None, "the option has a default"
    raise typer.Exit(run_until_stopped(data_dir, host=host, port=port, allow_public=allow_public))


@app.command()
def demo(
    data_dir: Annotated[
        Path | None, typer.Option(help="Keep the service's data here (default: a temporary folder).")
    ] = None,
    out: Annotated[Path, typer.Option(help="New folder for the adapter and its report.")] = Path(
        "demo-output"
    ),
) -> None:
    """Run the whole product once: poisoned upload, training, sanitised adapter, table.

    Exits with 1 if anything fails, also if the harmful score did not fall.
    """
    from workers.demo import run_demo

    raise typer.Exit(run_demo(data_dir, out))


@app.command()
def api(host: HostOption = "127.0.0.1", port: PortOption = 8000, allow_public: PublicOption = False) -> None:
    """Serve the API. Settings come from the environment (docs/configuration.md)."""
    from service.main import serve

    serve(host=host, port=port, allow_public=allow_public)


@app.command()
def worker(
    without_maintenance: Annotated[
        bool,
        typer.Option("--without-maintenance", help="Leave outbox and expired leases to another process."),
    ] = False,
) -> None:
    """Run jobs, one at a time. Settings come from the environment (docs/configuration.md)."""
    from workers.worker import run_worker

    raise typer.Exit(run_worker(maintain=not without_maintenance))


@app.command()
def maintenance() -> None:
    """Run the maintenance loop alone (outbox, leases, webhooks, sweep), beside workers that leave it out."""
    from workers.maintenance_process import run_maintenance

    run_maintenance()


def main() -> None:
    """What the user or operator can put right is one message on stderr and exit status 2."""
    app()


if __name__ == "__main__":
    main()
