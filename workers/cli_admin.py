"""`autoclave admin`: what an operator does to the database, without the API.

Identifiers and keys go to stdout, alone, so that scripts can read them; explanations go to stderr.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from workers.cli_audit import audit
from workers.cli_database import DataDirOption, database_url, transaction
from workers.cli_storage import storage
from workers.cli_tenants import tenants

admin = typer.Typer(no_args_is_help=True)
admin.add_typer(tenants)
admin.add_typer(audit)
admin.add_typer(storage)


@admin.command()
def migrate(data_dir: DataDirOption = None) -> None:
    """Bring the database's schema to what this version needs. Harmless when it already is."""
    from sqlalchemy.exc import OperationalError

    from service import schema
    from service.audit.log import operator, record
    from service.db import Database
    from service.startup import StartError

    url = database_url(data_dir)
    try:
        database = Database.from_url(url)
        before = schema.current_revision(database.engine)
        database.close()
        revision = schema.upgrade(url)
    except ValueError as error:
        raise StartError(str(error)) from error
    except OperationalError as error:
        raise StartError(f"DATABASE_URL: {str(error.orig).strip()}") from error
    if revision != before:
        with transaction(data_dir) as session:
            record(
                session,
                operator(),
                "database.migrated",
                revision,
                organization_id=None,
                project_id=None,
                now=time.time(),
                before=before,
            )
    typer.echo(f"the database is at revision {revision}", err=True)


@admin.command()
def add_base(  # noqa: PLR0917 - typer passes options by name
    id: Annotated[str, typer.Option(help="What clients send as `model`.")],
    path: Annotated[Path, typer.Option(help="Folder of the aligned model, as the workers see it.")],
    profile: Annotated[Path, typer.Option(help="JSON file with a safety profile (docs/operations.md).")],
    revision: Annotated[str, typer.Option(help="Version of the weights, for provenance.")] = "1",
    alignment_method: Annotated[
        str | None, typer.Option(help="How it was aligned. [default: from alignment.json]")
    ] = None,
    spec: Annotated[
        Path | None, typer.Option(help='JSON file with the job spec that "auto" means on this base.')
    ] = None,
    data_dir: DataDirOption = None,
) -> None:
    """Register an aligned base, or change everything but the weights of a known one.

    Nothing is loaded or measured: `autoclave base add` does that, where the weights are.
    """
    from autoclave.spec import JobSpec
    from service.audit.log import operator
    from workers.bases.registering import (
        alignment_method_of,
        hash_of,
        read_profile,
        read_spec,
        register_folder,
    )

    safety_profile = read_profile(profile)
    default_spec = read_spec(spec, JobSpec) if spec else JobSpec()
    folder = path.absolute()
    sha256 = hash_of(folder)
    with transaction(data_dir) as session:
        register_folder(
            session,
            folder,
            id=id,
            revision=revision,
            alignment_method=alignment_method or alignment_method_of(folder) or "unknown",
            default_spec=default_spec,
            safety_profile=safety_profile,
            sha256=sha256,
            actor=operator(),
        )
    typer.echo(sha256)


@admin.command()
def add_microcosm(data_dir: DataDirOption = None) -> None:
    """Register the small synthetic world that ships with Autoclave, to try a deployment without a model."""
    from autoclave.microcosm.shipped import shipped_world
    from service.audit.log import operator
    from service.startup import open_database
    from workers.shipped_base import SHIPPED_BASE_ID, register_shipped_base

    database = open_database(database_url(data_dir))
    try:
        register_shipped_base(database, shipped_world(), actor=operator())
    finally:
        database.close()
    typer.echo(SHIPPED_BASE_ID)


@admin.command()
def retire_base(
    id: Annotated[str, typer.Option(help="Id of the base.")], data_dir: DataDirOption = None
) -> None:
    """Refuse new jobs on a base. Running ones go on; add-base brings it back."""
    from service.audit.log import operator
    from service.catalog import retire_base

    with transaction(data_dir) as session:
        retire_base(session, id, now=time.time(), actor=operator())
    typer.echo(f"{id} is retired", err=True)


@admin.command()
def release_job(
    job: Annotated[str, typer.Argument(help="Id of a job that failed with safety_gate_failed.")],
    reason: Annotated[str, typer.Option(help="Why; for the audit log, the report and the model card.")],
    data_dir: DataDirOption = None,
) -> None:
    """Release a job that missed the safety gate, and print the id of the job that does it.

    Its adapter is sanitised all the same, as near to the gate as it gets.
    """
    from service.audit.log import operator
    from service.checkpoints.gated import release_gated_job
    from service.settings import Settings

    # The lifetime alone counts here, and is read from the environment also for a data directory.
    settings = Settings(database_url=database_url(data_dir), storage_url="")
    with transaction(data_dir) as session:
        new_id = release_gated_job(
            session,
            job,
            reason=reason,
            actor=operator(),
            kept_ttl_seconds=settings.kept_adapter_ttl_seconds,
            now=time.time(),
        )
    typer.echo(f"{job} is being released as the job below; its report says what was missed", err=True)
    typer.echo(new_id)
