"""What every command of `autoclave jobs` takes, and how it finds server and key."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from workers.jobs_cli.errors import JobsError, RefusedError

if TYPE_CHECKING:
    from rich.console import Console

    from workers.jobs_cli.client import Client

DEFAULT_BASE_URL = "http://127.0.0.1:8000/v1"
KEY_VARIABLE = "AUTOCLAVE_API_KEY"
EXIT_INTERRUPTED = 130

# Typer has click's errors from click or from a copy of its own, by its version; this name it always has.
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]

BaseUrlOption = Annotated[
    str, typer.Option("--base-url", envvar="AUTOCLAVE_BASE_URL", help="The API, up to /v1.")
]
KeyFileOption = Annotated[
    Path | None,
    typer.Option(
        "--api-key-file", help=f"File that holds the API key and nothing else (default: {KEY_VARIABLE})."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="For scripts: JSON as the API answers it.")]
JobArgument = Annotated[str, typer.Argument(metavar="JOB", help="The job's id (ftjob-...).")]
PatienceOption = Annotated[
    float,
    typer.Option(
        "--patience",
        min=0.0,
        metavar="SECONDS",
        help="How long the server may be away before it is given up.",
    ),
]
IntervalOption = Annotated[
    float, typer.Option("--interval", min=0.1, metavar="SECONDS", help="How often the job is looked at.")
]


class JobsGroup(TyperGroup):
    """One line on standard error and an exit status per kind of error. A wrong option ends with 3 too: 2
    would say that a job was cancelled."""

    def invoke(self, ctx: Any) -> Any:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="replace")  # a text that this terminal cannot show is no error
        try:
            return super().invoke(ctx)
        except _UsageError as error:
            wrong_option: Any = error
            wrong_option.exit_code = RefusedError.exit_status
            raise
        except JobsError as error:
            message, status = str(error), error.exit_status
        except OSError as error:
            if error.filename is None:
                raise  # a closed pipe, which is no error of whoever typed the command
            message, status = f"{error.filename}: {error.strerror}", RefusedError.exit_status
        except KeyboardInterrupt:
            message, status = "interrupted; no job was stopped by it", EXIT_INTERRUPTED
        typer.echo(f"error: {message}", err=True)
        raise typer.Exit(status)


def connect(base_url: str, api_key_file: Path | None) -> Client:
    """Sends nothing yet. Raises RefusedError, OSError."""
    from workers.jobs_cli.client import Client, checked_base_url, checked_key

    if api_key_file is not None:
        text, key_from = api_key_file.read_text(encoding="utf-8", errors="replace"), str(api_key_file)
    else:
        text, key_from = os.environ.get(KEY_VARIABLE, ""), KEY_VARIABLE
        if not text:
            raise RefusedError(f"no API key: set {KEY_VARIABLE}, or name a file with --api-key-file")
    return Client(checked_base_url(base_url), checked_key(text, key_from=key_from), key_from=key_from)


def console(*, stderr: bool = False) -> Console:
    """Wide where it is no terminal: whoever reads a pipe wants whole lines."""
    from rich.console import Console

    made = Console(stderr=stderr, highlight=False, markup=False)
    if made.is_terminal:
        return made
    return Console(stderr=stderr, highlight=False, markup=False, width=200)
