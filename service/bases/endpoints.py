"""/v1/organization/bases and /v1/organization/base_registrations: the server's bases, for admin keys with the
role `catalog`."""

from __future__ import annotations

import time
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request
from starlette.exceptions import HTTPException

from service.bases import repository, service
from service.bases.schemas import (
    BaseList,
    BaseObject,
    CreateRegistration,
    RegistrationList,
    RegistrationObject,
)
from service.catalog import restore_base, retire_base
from service.catalog.names import BELOW_A_BASE
from service.deps import AdminDep, AdminRoute, DatabaseDep
from service.settings import Settings

router = APIRouter(prefix="/organization", tags=["bases"], route_class=AdminRoute)

Limit = Annotated[int, Query(ge=1, le=100)]


def _base_id(base: str) -> str:
    """Not what lies below a base: those routes take other methods (and no id ends like them)."""
    if base.endswith(BELOW_A_BASE):
        raise HTTPException(405)
    return base


@router.get("/bases")
def list_bases(
    *, database: DatabaseDep, after: str | None = None, limit: Limit = 20, include_retired: bool = False
) -> BaseList:
    """By id. `after` is the id of a base, also of one that is not listed."""
    with database.snapshot() as session:
        if after is not None:
            service.find_base(session, after, param="after")
        bases, has_more = repository.list_bases(
            session, include_retired=include_retired, after=after, limit=limit
        )
        return BaseList.of(bases, has_more=has_more)


# Ids of bases contain slashes: a client sends %2F, which is decoded before routing.
@router.get("/bases/{base:path}")
def retrieve_base(base: Annotated[str, Depends(_base_id)], database: DatabaseDep) -> BaseObject:
    with database.snapshot() as session:
        return BaseObject.of(service.find_base(session, base))


@router.post("/bases/{base:path}/retire")
def retire(base: str, database: DatabaseDep, admin: AdminDep) -> BaseObject:
    """New jobs cannot use it any more; running ones go on. Twice is no error."""
    with database.transaction() as session:
        service.find_base(session, base)
        return BaseObject.of(retire_base(session, base, now=time.time(), actor=admin.actor))


@router.post("/bases/{base:path}/restore")
def restore(base: str, database: DatabaseDep, admin: AdminDep) -> BaseObject:
    """Brings a retired base back as it was registered."""
    with database.transaction() as session:
        service.find_base(session, base)
        return BaseObject.of(restore_base(session, base, now=time.time(), actor=admin.actor))


@router.get("/base_registrations")
def list_registrations(
    *, database: DatabaseDep, after: str | None = None, limit: Limit = 20
) -> RegistrationList:
    """Newest first."""
    with database.snapshot() as session:
        start = None
        if after is not None:
            last = repository.get_registration(session, after)
            if last is None:
                raise service.registration_not_found(after, param="after")
            start = (last.created_at, last.id)
        rows, has_more = repository.list_registrations(session, after=start, limit=limit)
        return RegistrationList.of(rows, has_more=has_more)


@router.post("/base_registrations")
def create_registration(
    request: Request, body: CreateRegistration, database: DatabaseDep, admin: AdminDep
) -> RegistrationObject:
    """Has a worker check the base, measure it and register it, as `autoclave base add` does."""
    settings: Settings = request.state.settings
    profile = service.check_request(database, body, base_folders=settings.base_folders)
    with database.transaction() as session:
        return RegistrationObject.of(
            service.create_registration(session, admin, body, profile, now=database.now())
        )


@router.get("/base_registrations/{registration_id}")
def retrieve_registration(registration_id: str, database: DatabaseDep) -> RegistrationObject:
    with database.snapshot() as session:
        row = repository.get_registration(session, registration_id)
        if row is None:
            raise service.registration_not_found(registration_id, param="registration_id")
        return RegistrationObject.of(row)


@router.post("/base_registrations/{registration_id}/cancel")
def cancel_registration(registration_id: str, database: DatabaseDep, admin: AdminDep) -> RegistrationObject:
    with database.transaction() as session:
        return RegistrationObject.of(
            service.cancel_registration(session, admin, registration_id, now=database.now())
        )
