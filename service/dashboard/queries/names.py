"""What people call projects and keys."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy import func, or_, select
from sqlalchemy.orm import Session

from service.models import AdminKey, ApiKey, OperatorKey, Organization, Project

MOST_MATCHES = 200


@dataclass(frozen=True)
class ProjectName:
    id: str
    name: str
    organization: str
    organization_id: str


def names_of_projects(session: Session, ids: Collection[str]) -> dict[str, ProjectName]:
    query = (
        select(Project.id, Project.name, Organization.name, Project.organization_id)
        .join(Organization, Organization.id == Project.organization_id)
        .where(Project.id.in_(set(ids)))
    )
    return {row[0]: ProjectName(*row) for row in session.execute(query)} if ids else {}


def projects_called(session: Session, words: str) -> list[str]:
    """Ids of projects with this id, or whose name or organization's name contains the words."""
    exact = session.scalar(select(Project.id).where(Project.id == words))
    if exact is not None:
        return [exact]
    lowered = words.lower()
    query = (
        select(Project.id)
        .join(Organization, Organization.id == Project.organization_id)
        .where(
            or_(
                func.lower(Project.name).contains(lowered, autoescape=True),
                func.lower(Organization.name).contains(lowered, autoescape=True),
                Organization.id == words,
            )
        )
        .order_by(Project.created_at, Project.id)
        .limit(MOST_MATCHES)
    )
    return list(session.scalars(query))


def names_of_keys(session: Session, actors: Collection[str]) -> dict[str, str]:
    """Of the keys among the actors of an audit log."""
    names: dict[str, str] = {}
    for table, prefix in ((ApiKey, "key_"), (AdminKey, "adminkey_"), (OperatorKey, "opkey_")):
        ids = {actor for actor in actors if actor.startswith(prefix)}
        if ids:
            rows = session.execute(select(table.id, table.name).where(table.id.in_(ids)))
            names |= {row[0]: row[1] for row in rows}
    return names
