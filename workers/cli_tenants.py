"""`autoclave admin`: organizations, projects, and the keys of both."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from autoclave.errors import InputError
from service.scopes import Role, Scope
from workers.cli_database import DataDirOption, JsonOption, show, snapshot, transaction

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from service.models import AdminKey, ApiKey, OperatorKey, Project

tenants = typer.Typer()

OrganizationOption = Annotated[str, typer.Option(help="Id of the organization (org-...).")]
DaysOption = Annotated[
    float | None, typer.Option(min=0.001, max=3650, help="The key ends after so many days (default: never).")
]
ALL = "all"


@tenants.command()
def create_organization(
    name: Annotated[str, typer.Option(help="Shown to operators.")], data_dir: DataDirOption = None
) -> None:
    """Make an organization and print its id."""
    from service import auth
    from service.audit.log import operator

    with transaction(data_dir) as session:
        made = auth.create_organization(session, name=name, now=time.time(), actor=operator())
    typer.echo(made.id)


@tenants.command()
def list_organizations(as_json: JsonOption = False, data_dir: DataDirOption = None) -> None:
    """Show all organizations."""
    from sqlalchemy import select

    from service.models import Organization

    with snapshot(data_dir) as session:
        query = select(Organization).order_by(Organization.created_at, Organization.id)
        rows = [{"id": o.id, "name": o.name, "created_at": o.created_at} for o in session.scalars(query)]
    show(rows, ("id", "name", "created_at"), as_json=as_json)


@tenants.command()
def create_project(
    organization: OrganizationOption,
    name: Annotated[str, typer.Option(help="Shown to operators.")],
    data_dir: DataDirOption = None,
) -> None:
    """Make a project and print its id. Files, jobs and adapters are seen within one project only."""
    from service import auth
    from service.audit.log import operator

    with transaction(data_dir) as session:
        project = auth.create_project(
            session, organization_id=organization, name=name, now=time.time(), actor=operator()
        )
    typer.echo(project.id)


@tenants.command()
def list_projects(
    organization: Annotated[str | None, typer.Option(help="Only of this organization.")] = None,
    as_json: JsonOption = False,
    data_dir: DataDirOption = None,
) -> None:
    """Show projects."""
    from sqlalchemy import select

    from service.models import Project

    query = select(Project).order_by(Project.created_at, Project.id)
    if organization is not None:
        query = query.where(Project.organization_id == organization)
    with snapshot(data_dir) as session:
        rows = [
            {
                "id": project.id,
                "organization_id": project.organization_id,
                "name": project.name,
                "created_at": project.created_at,
            }
            for project in session.scalars(query)
        ]
    show(rows, ("id", "organization_id", "name", "created_at"), as_json=as_json)


@tenants.command()
def create_key(
    project: Annotated[
        str, typer.Option(help="Id (proj_...) or name of the project; made if there is none at all yet.")
    ] = "default",
    name: Annotated[str, typer.Option(help="What the key is for.")] = "unnamed",
    scope: Annotated[
        list[Scope] | None, typer.Option(help="May be given several times (default: all scopes).")
    ] = None,
    expires_in_days: DaysOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Make an API key and print it. It is not stored and cannot be printed again."""
    from service import auth
    from service.audit.log import operator

    now = time.time()
    with transaction(data_dir) as session:
        project_id = _project_id(session, project)
        row, key = auth.create_api_key(
            session,
            project_id=project_id,
            name=name,
            scopes=scope or None,
            expires_at=_end(expires_in_days, now),
            now=now,
            actor=operator(),
        )
    typer.echo(f"key {row.id} for project {project_id}; to revoke it: autoclave admin revoke-key", err=True)
    typer.echo(key)


@tenants.command()
def create_admin_key(
    organization: OrganizationOption,
    name: Annotated[str, typer.Option(help="What the key is for.")] = "unnamed",
    role: Annotated[
        Role, typer.Option(help="owner: everything; reader: lists only; catalog: owner, and bases.")
    ] = Role.OWNER,
    expires_in_days: DaysOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Make an admin key and print it: for an organization's projects, their keys, grants and audit log."""
    from service import auth
    from service.audit.log import operator

    now = time.time()
    with transaction(data_dir) as session:
        row, key = auth.create_admin_key(
            session,
            organization_id=organization,
            name=name,
            role=role,
            expires_at=_end(expires_in_days, now),
            now=now,
            actor=operator(),
        )
    typer.echo(f"admin key {row.id}; to revoke it: autoclave admin revoke-key", err=True)
    typer.echo(key)


@tenants.command()
def create_operator_key(
    name: Annotated[str, typer.Option(help="Whose it is, or what for.")] = "unnamed",
    expires_in_days: DaysOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Make an operator key and print it: it opens the operator's pages, where everybody's jobs are seen."""
    from service.audit.log import operator
    from service.operators import create_operator_key

    now = time.time()
    with transaction(data_dir) as session:
        row, key = create_operator_key(
            session, name=name, expires_at=_end(expires_in_days, now), now=now, actor=operator()
        )
    typer.echo(f"operator key {row.id}; to revoke it: autoclave admin revoke-key", err=True)
    typer.echo(key)


@tenants.command()
def list_keys(
    project: Annotated[str | None, typer.Option(help="Only of this project (id).")] = None,
    organization: Annotated[str | None, typer.Option(help="Only of this organization (id).")] = None,
    as_json: JsonOption = False,
    data_dir: DataDirOption = None,
) -> None:
    """Show keys of projects, admins and operators, also revoked and expired ones; never the secrets."""
    from sqlalchemy import select

    from service.models import AdminKey, ApiKey, OperatorKey, Project

    of_projects = select(ApiKey, Project).join(Project, Project.id == ApiKey.project_id)
    of_admins = select(AdminKey)
    if organization is not None:
        of_projects = of_projects.where(Project.organization_id == organization)
        of_admins = of_admins.where(AdminKey.organization_id == organization)
    if project is not None:
        of_projects = of_projects.where(Project.id == project)
    with snapshot(data_dir) as session:
        rows = [
            _shown(key, key.scopes or [ALL], owner.organization_id, owner.id)
            for key, owner in session.execute(of_projects.order_by(ApiKey.created_at, ApiKey.id))
        ]
        if project is None:
            rows += [
                _shown(key, [key.role], key.organization_id, None)
                for key in session.scalars(of_admins.order_by(AdminKey.created_at, AdminKey.id))
            ]
        if project is None and organization is None:
            of_operators = select(OperatorKey).order_by(OperatorKey.created_at, OperatorKey.id)
            rows += [_shown(key, ["operator"], None, None) for key in session.scalars(of_operators)]
    columns = ("id", "name", "prefix", "project_id", "scopes", "last_used_at", "expires_at", "revoked_at")
    show(rows, columns, as_json=as_json)


@tenants.command()
def revoke_key(
    key_id: Annotated[str, typer.Option("--key", help="Id of the key (key_..., adminkey_... or opkey_...).")],
    data_dir: DataDirOption = None,
) -> None:
    """Make a key invalid, from the next request on."""
    from service import auth, operators
    from service.audit.log import operator

    revoke: Callable[..., object] = auth.revoke_api_key
    if key_id.startswith("adminkey_"):
        revoke = auth.revoke_admin_key
    elif key_id.startswith("opkey_"):
        revoke = operators.revoke_operator_key
    with transaction(data_dir) as session:
        revoke(session, key_id=key_id, now=time.time(), actor=operator())
    typer.echo(f"{key_id} is revoked", err=True)


def _shown(
    key: ApiKey | AdminKey | OperatorKey,
    scopes: list[str],
    organization_id: str | None,
    project_id: str | None,
) -> dict[str, Any]:
    return {
        "id": key.id,
        "name": key.name,
        "prefix": key.prefix,
        "organization_id": organization_id,
        "project_id": project_id,
        "scopes": scopes,
        "created_at": key.created_at,
        "last_used_at": key.last_used_at,
        "expires_at": key.expires_at,
        "revoked_at": key.revoked_at,
    }


def _end(days: float | None, now: float) -> float | None:
    return None if days is None else now + days * 86400


def _project_id(session: Session, wanted: str) -> str:
    from sqlalchemy import select

    from service import auth
    from service.audit.log import operator
    from service.models import Project

    projects: list[Project] = list(session.scalars(select(Project)))
    matching = [p for p in projects if wanted in (p.id, p.name)]
    if len(matching) == 1:
        return matching[0].id
    if matching:
        raise InputError(f"{len(matching)} projects are called {wanted!r}; give the id of one of them")
    if projects:
        raise InputError(f"there is no project {wanted!r}; make one with `autoclave admin create-project`")
    now, actor = time.time(), operator()
    organization = auth.create_organization(session, name="default", now=now, actor=actor)
    project = auth.create_project(session, organization_id=organization.id, name=wanted, now=now, actor=actor)
    return project.id
