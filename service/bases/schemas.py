"""Bases and their registrations on the wire. All of it is ours; OpenAI has no such routes.

What an admin key with the role `catalog` reads is the operator's: paths, profiles, measurements.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field

from autoclave.spec import JobSpec, SafetyProfile
from service.models import AlignedBase, BaseRegistration
from service.wire import Request, Text

Name = Annotated[Text, Field(min_length=1, max_length=255)]
Path = Annotated[Text, Field(min_length=1, max_length=4096)]


def _storable(value: SafetyProfile | JobSpec) -> Any:
    """JSON that both databases take, however it was written."""
    try:
        text = json.dumps(value.model_dump(mode="json"), ensure_ascii=False, allow_nan=False)
        text.encode("utf-8")
    except ValueError as error:
        raise ValueError(f"it cannot be stored: {error}") from None
    if "\\u0000" in text:
        raise ValueError("it contains a NUL character, which cannot be stored")
    return value


class CreateRegistration(Request):
    """As the options of `autoclave base add` (docs/bases.md). Exactly one of `profile`, `profile_file` and
    `profile_of` is given."""

    name: Name
    source: Path
    """A folder of the workers, absolute, or owner/name on the model hub."""
    revision: Name | None = None
    profile: Annotated[SafetyProfile, AfterValidator(_storable)] | None = None
    profile_file: Path | None = None
    profile_of: Name | None = None
    """A registered base, whose profile this one gets too."""
    spec: Annotated[JobSpec, AfterValidator(_storable)] | None = None
    template: Annotated[Text, Field(min_length=1, max_length=64)] | None = None
    store: Path | None = None
    alignment_method: Annotated[Text, Field(min_length=1, max_length=64)] | None = None
    device: Annotated[str, Field(pattern=r"^(cpu|cuda(:[0-9]{1,2})?)$")] | None = None
    worker_class: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")] | None = None


class RegistrationError(BaseModel):
    code: str
    message: str


class RegistrationProgress(BaseModel):
    doing: str | None
    step: int | None
    total_steps: int | None
    seconds_remaining: float | None


class RegistrationObject(BaseModel):
    id: str
    object: Literal["organization.base_registration"] = "organization.base_registration"
    created_at: int
    started_at: int | None
    finished_at: int | None
    status: Literal["queued", "running", "succeeded", "failed", "cancelled"]
    cancel_requested: bool
    name: str
    source: str
    revision: str | None
    """As asked for; the base has what it came to."""
    profile: dict[str, Any] | None
    """Null until a worker has read `profile_file`."""
    profile_file: str | None
    profile_of: str | None
    spec: dict[str, Any]
    template: str | None
    store: str | None
    alignment_method: str | None
    device: str | None
    worker_class: str | None
    attempts: int
    progress: RegistrationProgress | None
    notes: list[str]
    error: RegistrationError | None
    sha256: str | None
    created_by: str

    @classmethod
    def of(cls, row: BaseRegistration) -> RegistrationObject:
        same = (
            *("id", "status", "name", "source", "revision", "profile", "profile_file", "profile_of", "spec"),
            *("template", "store", "alignment_method", "device", "worker_class", "sha256", "created_by"),
        )
        values: dict[str, Any] = {field: getattr(row, field) for field in same}
        for field in ("created_at", "started_at", "finished_at"):
            moment = getattr(row, field)
            values[field] = None if moment is None else int(moment)
        progress = row.progress and {
            field: row.progress.get(field) for field in RegistrationProgress.model_fields
        }
        error = row.error_code and {"code": row.error_code, "message": row.error_message or ""}
        return cls.model_validate(
            values
            | {
                "cancel_requested": row.cancel_requested_at is not None,
                "attempts": row.attempt_count,
                "notes": row.notes or [],
                "progress": progress or None,
                "error": error or None,
            }
        )


class RegistrationList(BaseModel):
    object: Literal["list"] = "list"
    data: list[RegistrationObject]
    first_id: str | None
    last_id: str | None
    has_more: bool

    @classmethod
    def of(cls, rows: list[BaseRegistration], *, has_more: bool) -> RegistrationList:
        return cls(
            data=[RegistrationObject.of(row) for row in rows],
            first_id=rows[0].id if rows else None,
            last_id=rows[-1].id if rows else None,
            has_more=has_more,
        )


class BaseObject(BaseModel):
    id: str
    object: Literal["organization.base"] = "organization.base"
    created_at: int
    retired_at: int | None
    revision: str
    path: str
    sha256: str
    alignment_method: str
    spec: dict[str, Any]
    profile: dict[str, Any]
    harmful_score: float | None
    tokens_per_second: float | None
    measurements: dict[str, Any] | None
    """docs/bases.md; null if the base was registered without being loaded."""

    @classmethod
    def of(cls, base: AlignedBase) -> BaseObject:
        measured = base.measurements
        return cls(
            id=base.id,
            created_at=int(base.created_at),
            retired_at=None if base.retired_at is None else int(base.retired_at),
            revision=base.revision,
            path=base.path,
            sha256=base.sha256,
            alignment_method=base.alignment_method,
            spec=base.default_spec,
            profile=base.safety_profile,
            harmful_score=measured and measured["floor"]["harmful_score"],
            tokens_per_second=measured and measured["generation"]["tokens_per_second"],
            measurements=measured,
        )


class BaseList(BaseModel):
    object: Literal["list"] = "list"
    data: list[BaseObject]
    first_id: str | None
    last_id: str | None
    has_more: bool

    @classmethod
    def of(cls, bases: list[AlignedBase], *, has_more: bool) -> BaseList:
        return cls(
            data=[BaseObject.of(base) for base in bases],
            first_id=bases[0].id if bases else None,
            last_id=bases[-1].id if bases else None,
            has_more=has_more,
        )
