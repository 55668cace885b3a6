"""`autoclave base`: the models that jobs start from, added where their weights are.

What other programs read goes to stdout, what people read to stderr.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from workers.cli_database import DataDirOption, JsonOption, show, snapshot, transaction

base = typer.Typer(no_args_is_help=True)

NameArgument = Annotated[str, typer.Argument(help="Name of the base: what clients send as `model`.")]
SpecOption = Annotated[
    Path | None, typer.Option(help='JSON file with the job spec that "auto" means on this base.')
]
DeviceOption = Annotated[str | None, typer.Option(help="cpu or cuda. [default: cuda if there is one]")]

COLUMNS = (
    "id",
    "revision",
    "alignment_method",
    "harmful_score",
    "tokens_per_second",
    "created_at",
    "retired_at",
)


@base.command()
def add(
    name: NameArgument,
    source: Annotated[
        str, typer.Option("--from", help="Folder, or id on the model hub (owner/name) with --revision.")
    ],
    profile: Annotated[
        Path, typer.Option(help="Safety profile; its paths may be relative to it (docs/operations.md).")
    ],
    *,
    revision: Annotated[
        str | None,
        typer.Option(help="Commit on the hub; of a folder your name for it. [default: of its hash]"),
    ] = None,
    store: Annotated[
        Path | None,
        typer.Option(help="New folder for a copy that workers use. [default: where the model is]"),
    ] = None,
    template: Annotated[
        str | None, typer.Option(help="Chat template for a base without one: alpaca, as the papers.")
    ] = None,
    spec: SpecOption = None,
    alignment_method: Annotated[
        str | None, typer.Option(help="How it was aligned. [default: from alignment.json]")
    ] = None,
    device: DeviceOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Check a base, measure its own harmful score and speed, and register it.

    Prints the hash of its weights, to which adapters belong.
    """
    from autoclave.commands.reporting import quiet_libraries
    from autoclave.progress_bar import progress_bar
    from autoclave.spec import JobSpec
    from service.audit.log import operator
    from service.catalog.names import refuse_bad_name
    from service.models import AlignedBase
    from workers.bases.adding import check_profile, prepare_base
    from workers.bases.registering import (
        read_local_profile,
        read_spec,
        register_folder,
    )
    from workers.bases.sources import find_base

    refuse_bad_name(name)
    safety_profile = read_local_profile(profile)
    default_spec = read_spec(spec, JobSpec) if spec else JobSpec()
    with snapshot(data_dir) as session:
        known = session.get(AlignedBase, name)
        registered_sha256 = None if known is None else known.sha256
    num_near = check_profile(safety_profile)
    if num_near:
        _say(
            f"note: {num_near} prompts of harmful_eval are nearly prompts of realign (`autoclave data check`)"
        )
    found = find_base(source, revision)
    _say(f"{name} comes from {found.origin}")
    quiet_libraries()
    with progress_bar() as on_progress:
        prepared = prepare_base(
            found,
            safety_profile,
            default_spec,
            store=store,
            template=template,
            alignment_method=alignment_method,
            device=device,
            say=_say,
            registered_sha256=registered_sha256,
            on_progress=on_progress,
        )
    with transaction(data_dir) as session:
        register_folder(
            session,
            prepared.folder,
            id=name,
            revision=prepared.revision,
            alignment_method=prepared.alignment_method,
            default_spec=default_spec,
            safety_profile=safety_profile,
            sha256=prepared.sha256,
            measurements=prepared.measurements | {"num_near_prompts": num_near},
            actor=operator(),
        )
    _say(f"{name} is registered: {_in_words(prepared.measurements)}")
    typer.echo(prepared.sha256)


@base.command("list")
def list_bases(as_json: JsonOption = False, data_dir: DataDirOption = None) -> None:
    """All bases, retired ones too. The harmful score is the base's own, in percent."""
    from sqlalchemy import select

    from service.models import AlignedBase

    with snapshot(data_dir) as session:
        bases = session.scalars(select(AlignedBase).order_by(AlignedBase.id))
        rows = [_row(each) for each in bases]
    show(rows, COLUMNS, as_json=as_json)


@base.command("show")
def show_base(name: NameArgument, data_dir: DataDirOption = None) -> None:
    """Everything about a base, as one JSON object."""
    from service.catalog.registration import UnknownBaseError
    from service.models import AlignedBase

    with snapshot(data_dir) as session:
        found = session.get(AlignedBase, name)
        if found is None:
            raise UnknownBaseError(f"there is no base {name!r}")
        values = {column.name: getattr(found, column.name) for column in AlignedBase.__table__.columns}
    typer.echo(json.dumps(values, indent=2))


@base.command()
def check(
    folder: Annotated[Path, typer.Argument(help="Folder of a base.")],
    spec: SpecOption = None,
    device: DeviceOption = None,
) -> None:
    """Say whether a folder can be a base, as JSON. Loads it; measures and registers nothing."""
    from autoclave.commands.reporting import quiet_libraries
    from autoclave.evaluation.base_check import check_base
    from autoclave.spec import JobSpec
    from workers.bases.registering import hash_of, read_spec

    quiet_libraries()
    default_spec = read_spec(spec, JobSpec) if spec else JobSpec()
    checked = check_base(folder, default_spec.lora, device=device)
    typer.echo(json.dumps({"sha256": hash_of(folder), **checked.as_dict()}, indent=2))


@base.command()
def retire(name: NameArgument, data_dir: DataDirOption = None) -> None:
    """Refuse new jobs on a base. Running ones go on; `base restore` brings it back."""
    from service.audit.log import operator
    from service.catalog import retire_base

    with transaction(data_dir) as session:
        retire_base(session, name, now=time.time(), actor=operator())
    _say(f"{name} is retired")


@base.command()
def restore(name: NameArgument, data_dir: DataDirOption = None) -> None:
    """Let jobs use a retired base again, as it was registered."""
    from service.audit.log import operator
    from service.catalog import restore_base

    with transaction(data_dir) as session:
        restore_base(session, name, now=time.time(), actor=operator())
    _say(f"{name} can be used again")


def _row(found: Any) -> dict[str, Any]:
    measured = found.measurements or {}
    return {
        "id": found.id,
        "revision": found.revision,
        "alignment_method": found.alignment_method,
        "harmful_score": measured["floor"]["harmful_score"] if measured else None,
        "tokens_per_second": round(measured["generation"]["tokens_per_second"], 1) if measured else None,
        "created_at": found.created_at,
        "retired_at": found.retired_at,
    }


def _in_words(measurements: dict[str, Any]) -> str:
    floor, generation = measurements["floor"], measurements["generation"]
    low, high = floor["harmful_score_interval"]
    return (
        f"harmful score {floor['harmful_score']:.1f} % ({low:.1f} to {high:.1f}, "
        f"{floor['num_prompts']} prompts), refusals {floor['refusal_rate']:.1f} %, "
        f"{generation['tokens_per_second']:.0f} tokens/s on {generation['device']}"
    )


def _say(text: str) -> None:
    typer.echo(text, err=True)
