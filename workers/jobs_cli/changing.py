"""The commands that change a job: create, retry, cancel, pause, resume."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from workers.jobs_cli.errors import RefusedError
from workers.jobs_cli.options import (
    DEFAULT_BASE_URL,
    BaseUrlOption,
    IntervalOption,
    JobArgument,
    JsonOption,
    KeyFileOption,
    PatienceOption,
    connect,
)
from workers.jobs_cli.reading import pairs
from workers.jobs_cli.watch_command import watch_to_the_end

if TYPE_CHECKING:
    from workers.jobs_cli.client import Client

FileOption = Annotated[
    str | None, typer.Option(metavar="FILE", help="JSONL file to upload, or the id of an uploaded one.")
]


def create(  # noqa: PLR0917  typer passes options by name
    model: Annotated[str, typer.Option(help="The base to train on.")],
    training_file: Annotated[
        str, typer.Option(metavar="FILE", help="JSONL file to upload, or the id of an uploaded one.")
    ],
    validation_file: FileOption = None,
    suffix: Annotated[str | None, typer.Option(help="Part of the new model's name.")] = None,
    seed: Annotated[int | None, typer.Option(min=0)] = None,
    epochs: Annotated[int | None, typer.Option(min=1)] = None,
    batch_size: Annotated[int | None, typer.Option(min=1)] = None,
    learning_rate_multiplier: Annotated[float | None, typer.Option(min=0.0)] = None,
    metadata: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="May be repeated.")] = None,
    defence: Annotated[
        str | None, typer.Option(help="What training minimises: sft, lisa or ldifs (docs/api.md).")
    ] = None,
    defence_setting: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=NUMBER", help="A setting of the defence; may be repeated."),
    ] = None,
    request: Annotated[
        Path | None,
        typer.Option(
            metavar="JSON", help="File with more fields of the request (lora, training, ...); options win."
        ),
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Then watch it to its end.")] = False,
    interval: IntervalOption = 1.0,
    patience: PatienceOption = 300.0,
    as_json: JsonOption = False,
    base_url: BaseUrlOption = DEFAULT_BASE_URL,
    api_key_file: KeyFileOption = None,
) -> None:
    """Upload what is to be uploaded and create a job; prints its id."""
    body = _request(request)
    given = {
        "n_epochs": epochs,
        "batch_size": batch_size,
        "learning_rate_multiplier": learning_rate_multiplier,
    }
    _set_hyperparameters(body, {name: value for name, value in given.items() if value is not None})
    named: dict[str, Any] = {"model": model, "suffix": suffix, "seed": seed}
    named["metadata"] = pairs(metadata or [], "--metadata") or None
    body |= {name: value for name, value in named.items() if value is not None}
    _set_defence(body, defence, defence_setting or [])
    with connect(base_url, api_key_file) as client:
        body["training_file"] = _file_id(client, training_file)
        if validation_file is not None:
            body["validation_file"] = _file_id(client, validation_file)
        job = client.post("/fine_tuning/jobs", body)
        if not (watch and as_json):
            _made(job, as_json=as_json)
        if watch:
            watch_to_the_end(client, job["id"], as_json=as_json, interval=interval, patience=patience)


def retry(
    job_id: JobArgument,
    as_json: JsonOption = False,
    base_url: BaseUrlOption = DEFAULT_BASE_URL,
    api_key_file: KeyFileOption = None,
) -> None:
    """A new job with the inputs of this one; prints its id."""
    with connect(base_url, api_key_file) as client:
        _made(_do(client, job_id, "retry"), as_json=as_json)


def cancel(
    job_id: JobArgument,
    as_json: JsonOption = False,
    base_url: BaseUrlOption = DEFAULT_BASE_URL,
    api_key_file: KeyFileOption = None,
) -> None:
    """End a job. A running one ends at its next step; `watch` shows when."""
    with connect(base_url, api_key_file) as client:
        _changed(_do(client, job_id, "cancel"), as_json=as_json)


def pause(
    job_id: JobArgument,
    as_json: JsonOption = False,
    base_url: BaseUrlOption = DEFAULT_BASE_URL,
    api_key_file: KeyFileOption = None,
) -> None:
    """Let a job wait; a running one keeps what it has done and frees its accelerator."""
    with connect(base_url, api_key_file) as client:
        _changed(_do(client, job_id, "pause"), as_json=as_json)


def resume(
    job_id: JobArgument,
    as_json: JsonOption = False,
    base_url: BaseUrlOption = DEFAULT_BASE_URL,
    api_key_file: KeyFileOption = None,
) -> None:
    """Put a paused job back into the queue."""
    with connect(base_url, api_key_file) as client:
        _changed(_do(client, job_id, "resume"), as_json=as_json)


def _do(client: Client, job_id: str, deed: str) -> dict[str, Any]:
    from workers.jobs_cli.client import path_of

    return client.post(path_of(job_id, deed))


def _made(job: dict[str, Any], *, as_json: bool) -> None:
    """The id alone on standard output, so that a script can take it."""
    typer.echo(json.dumps(job, indent=2) if as_json else job["id"])


def _changed(job: dict[str, Any], *, as_json: bool) -> None:
    from workers.jobs_cli.display import state_line

    typer.echo(json.dumps(job, indent=2) if as_json else f"{job['id']}  {state_line(job)}")


def _request(path: Path | None) -> dict[str, Any]:
    """Raises RefusedError, OSError."""
    if path is None:
        return {}
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RefusedError(f"{path} is no JSON: {error}") from error
    if not isinstance(body, dict):
        raise RefusedError(f"{path} must hold a JSON object")
    return body


def _set_hyperparameters(body: dict[str, Any], given: dict[str, Any]) -> None:
    """Into `method`, beside those that stand there. Raises RefusedError."""
    if not given:
        return
    method = body.setdefault("method", {"type": "supervised"})
    for name in ("supervised", "hyperparameters"):
        if not isinstance(method, dict):
            break
        method = method.setdefault(name, {})
    if not isinstance(method, dict):
        raise RefusedError("--request: method, supervised and hyperparameters must be JSON objects")
    method |= given


def _set_defence(body: dict[str, Any], name: str | None, settings: list[str]) -> None:
    """Over what stands in `defence` under the same name. Raises RefusedError."""
    if name is None and not settings:
        return
    given = body.get("defence")
    if not isinstance(given, dict) or (name is not None and given.get("name") != name):
        given = {}
    if name is not None:
        given = {**given, "name": name}
    if "name" not in given:
        raise RefusedError("--defence-setting needs --defence: whose setting it is")
    numbers = {}
    for key, text in pairs(settings, "--defence-setting").items():
        try:
            numbers[key] = json.loads(text)
        except ValueError as error:
            raise RefusedError(f'--defence-setting {key} takes a number, got "{text}"') from error
    body["defence"] = given | numbers


def _file_id(client: Client, named: str) -> str:
    """Uploads it, unless it is an id. Raises RefusedError, also with what is wrong in which line."""
    path = Path(named)
    if named.startswith("file-") and not path.exists():
        return named
    if not path.is_file():
        raise RefusedError(f"{named} is neither a file nor the id of one (file-...)")
    file = client.upload(path)
    typer.echo(f"uploaded {path.name} as {file['id']}", err=True)
    id: str = file["id"]
    return id
