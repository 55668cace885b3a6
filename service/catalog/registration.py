"""What an operator does to the catalogue: register a base and retire it.

Computes no hash and reads no model folder: the caller did (`autoclave.hashing.folder_sha256`), on a
machine that holds the folder.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy.orm import Session

from autoclave.errors import BaseMismatchError, InputError
from autoclave.spec import JobSpec, SafetyProfile
from service.audit.log import SYSTEM, Actor, record
from service.catalog.names import refuse_reserved_name
from service.models import AlignedBase


class UnknownBaseError(InputError):
    code = "not_found"


def register_base(
    session: Session,
    *,
    id: str,
    revision: str,
    path: str,
    sha256: str,
    alignment_method: str,
    default_spec: JobSpec,
    safety_profile: SafetyProfile,
    now: float,
    measurements: dict[str, Any] | None = None,
    actor: Actor = SYSTEM,
) -> AlignedBase:
    """Add a base, or replace everything about a known one except its weights.

    An adapter is valid only on exactly the base it was made for, so other weights under a known id
    raise BaseMismatchError. Registering a retired base brings it back. Jobs that exist keep the
    profile and spec they were created with. Without `measurements` older ones stay if the profile still
    measures harm in the same way; else they would be of other prompts, and are dropped.
    """
    refuse_reserved_name(id)
    refuse_unusable_spec(id, default_spec, safety_profile)
    base = session.get(AlignedBase, id)
    if base is None:
        base = AlignedBase(id=id, sha256=sha256, created_at=now)
        session.add(base)
    elif base.sha256 != sha256:
        raise BaseMismatchError(
            f"{id!r} is registered with the hash {base.sha256}, and this folder's is {sha256}. "
            "Adapters are valid only on the weights they were made for: register it under a new id."
        )
    profile = safety_profile.model_dump(mode="json")
    if measurements is None and base.measurements is not None and _measures_alike(base, profile):
        measurements = base.measurements
    base.measurements = measurements
    base.revision = revision
    base.path = path
    base.alignment_method = alignment_method
    base.default_spec = default_spec.model_dump(mode="json")
    base.safety_profile = profile
    base.retired_at = None
    if session.is_modified(base):
        session.flush()
        _record(session, actor, "base.registered", base, now=now)
    return base


def refuse_unusable_spec(base_id: str, default_spec: JobSpec, safety_profile: SafetyProfile) -> None:
    """Raises InputError for a default that no job could be run with."""
    if default_spec.defence.name == "lisa" and safety_profile.alignment is None:
        raise InputError(
            f"jobs on {base_id!r} would be trained with lisa by default, which needs alignment data: name a "
            "file of safe answers in the safety profile (alignment), or leave `defence` out of the job spec."
        )


def retire_base(session: Session, base_id: str, *, now: float, actor: Actor = SYSTEM) -> AlignedBase:
    """New jobs cannot use the base any more; running ones go on. Raises UnknownBaseError."""
    base = session.get(AlignedBase, base_id)
    if base is None:
        raise UnknownBaseError(f"there is no base {base_id!r}")
    if base.retired_at is None:
        base.retired_at = now
        session.flush()
        _record(session, actor, "base.retired", base, now=now)
    return base


def restore_base(session: Session, base_id: str, *, now: float, actor: Actor = SYSTEM) -> AlignedBase:
    """New jobs may use a retired base again, as it was. Raises UnknownBaseError."""
    base = session.get(AlignedBase, base_id)
    if base is None:
        raise UnknownBaseError(f"there is no base {base_id!r}")
    if base.retired_at is not None:
        base.retired_at = None
        session.flush()
        _record(session, actor, "base.restored", base, now=now)
    return base


def _measures_alike(base: AlignedBase, profile: dict[str, Any]) -> bool:
    return all(base.safety_profile[part] == profile[part] for part in ("harmful_eval", "judge", "evaluate"))


def _record(session: Session, actor: Actor, action: str, base: AlignedBase, *, now: float) -> None:
    record(
        session,
        actor,
        action,
        base.id,
        organization_id=None,
        project_id=None,
        now=now,
        revision=base.revision,
        safety_profile=base.safety_profile["version"],
    )
