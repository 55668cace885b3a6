"""Ask for a registration, and take that back. A worker does the rest (`workers.bases.taking`)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import ValidationError
from sqlalchemy.orm import Session

from autoclave.errors import InputError, JudgeError
from autoclave.spec import JobSpec, SafetyProfile
from service import ids
from service.bases import lease, refusals, repository
from service.bases.folders import PathRefusedError, parse_folders, refuse_path, refuse_profile_paths
from service.bases.schemas import CreateRegistration
from service.bases.states import LIVE, RegistrationStatus
from service.bases.wording import without_text
from service.catalog.names import refuse_bad_name
from service.catalog.registration import refuse_unusable_spec
from service.db import Database, lock_name
from service.deps import AdminCaller
from service.errors import ApiError, invalid, not_found
from service.models import AlignedBase, BaseRegistration


def registration_not_found(registration_id: str, *, param: str) -> ApiError:
    return not_found("base registration", registration_id, param=param, code="base_registration_not_found")


def base_not_found(base: str, *, param: str) -> ApiError:
    return not_found("base", base, param=param, code="base_not_found")


@contextmanager
def _refused_as(param: str) -> Iterator[None]:
    """What the library refuses, as an answer about this field."""
    try:
        yield
    except PathRefusedError as error:
        raise ApiError(400, str(error), param=param, code="path_refused") from error
    except JudgeError as error:  # about its name: no prompt is judged here
        raise invalid(str(error), param=param) from error
    except InputError as error:
        raise invalid(without_text(error), param=param) from None


def check_request(database: Database, body: CreateRegistration, *, base_folders: str) -> SafetyProfile | None:
    """Refuses whatever can be known now, with no transaction open: files are read. The profile, None where
    only a worker has its file. Raises ApiError."""
    folders = parse_folders(base_folders)
    with _refused_as("name"):
        refuse_bad_name(body.name)
    with _refused_as("source"):
        refusals.refuse_source(body.source, body.revision, folders)
    with _refused_as("store"):
        refusals.refuse_store(body.store, body.template, folders)
    profile = _profile(database, body, folders)
    if profile is not None:
        with _refused_as("spec"):
            refuse_unusable_spec(body.name, body.spec or JobSpec(), profile)
    with _refused_as("source"):
        refusals.refuse_folder(body.source, is_copied=body.store is not None)
    if profile is not None and refusals.has_files(profile):
        with _refused_as("profile"):
            refusals.refuse_profile_files(profile)
    return profile


def _profile(database: Database, body: CreateRegistration, folders: tuple[Path, ...]) -> SafetyProfile | None:
    given = [field for field in ("profile", "profile_file", "profile_of") if getattr(body, field) is not None]
    if len(given) != 1:
        raise invalid("Give exactly one of profile, profile_file and profile_of.", param="profile")
    if body.profile is not None:
        with _refused_as("profile"):
            refuse_profile_paths(body.profile, folders)
        return body.profile
    if body.profile_file is not None:
        with _refused_as("profile_file"):
            refuse_path(body.profile_file, folders, what="profile_file")
        # Read by a worker, which has the files that it names.
        return None
    assert body.profile_of is not None
    with database.snapshot() as session:
        base = repository.get_base(session, body.profile_of)
        if base is None:
            raise base_not_found(body.profile_of, param="profile_of")
        try:
            return SafetyProfile.model_validate(base.safety_profile)
        except ValidationError:
            raise invalid(
                f"The profile of {body.profile_of!r} was stored by another version; register that base anew.",
                param="profile_of",
            ) from None


def create_registration(
    session: Session,
    caller: AdminCaller,
    body: CreateRegistration,
    profile: SafetyProfile | None,
    *,
    now: float,
) -> BaseRegistration:
    """`profile` is what `check_request` returned. Raises ApiError 400 while another one of the name runs."""
    lock_name(session, f"base_registration/{body.name}")
    if repository.live_registration(session, body.name) is not None:
        raise ApiError(
            400,
            f"A registration of {body.name!r} has not ended yet; wait for it, or cancel it.",
            param="name",
            code="base_registration_active",
        )
    row = BaseRegistration(
        id=ids.base_registration_id(),
        organization_id=caller.organization_id,
        created_by=caller.actor.name,
        request_id=caller.actor.request_id,
        created_at=now,
        name=body.name,
        source=body.source,
        revision=body.revision,
        profile=None if profile is None else profile.model_dump(mode="json"),
        profile_file=body.profile_file,
        profile_of=body.profile_of,
        spec=(body.spec or JobSpec()).model_dump(mode="json"),
        template=body.template,
        store=body.store,
        alignment_method=body.alignment_method,
        device=body.device,
        worker_class=body.worker_class,
        status=RegistrationStatus.QUEUED.value,
        fencing_number=0,
        attempt_count=0,
    )
    session.add(row)
    session.flush()
    caller.trail(None).record(
        session, "base_registration.created", row.id, now=now, name=row.name, source=row.source
    )
    return row


def cancel_registration(
    session: Session, caller: AdminCaller, registration_id: str, *, now: float
) -> BaseRegistration:
    """At once if nobody works on it, else within a second or two. Raises ApiError 404, or 400 if it ended."""
    row = repository.get_registration(session, registration_id, for_update=True)
    if row is None:
        raise registration_not_found(registration_id, param="registration_id")
    if row.status not in LIVE:
        raise ApiError(
            400,
            f"This registration has already ended: {row.status}.",
            param="registration_id",
            code="base_registration_already_terminal",
        )
    if row.cancel_requested_at is None:
        row.cancel_requested_at = now
        caller.trail(None).record(session, "base_registration.cancelled", row.id, now=now, name=row.name)
    if row.status == RegistrationStatus.QUEUED.value:
        lease.end(row, RegistrationStatus.CANCELLED, now=now)
    session.flush()
    return row


def find_base(session: Session, base: str, *, param: str = "base") -> AlignedBase:
    """Also a retired one. Raises ApiError 404."""
    found = repository.get_base(session, base)
    if found is None:
        raise base_not_found(base, param=param)
    return found
