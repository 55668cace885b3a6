"""What the operator's files say of a base, and its row: all that `autoclave admin add-base` and `autoclave
base add` have in common. Loads no model, so it works where there is no torch."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy.orm import Session

from autoclave.errors import InputError
from autoclave.evaluation.judges.names import absolute_judge
from autoclave.hashing import folder_sha256
from autoclave.spec import JobSpec, SafetyProfile, Spec
from service.audit.log import Actor
from service.bases.folders import PROFILE_FILES
from service.catalog import register_base
from service.models import AlignedBase

SpecType = TypeVar("SpecType", bound=Spec)

ALIGNMENT_RECORD = "alignment.json"
_MAX_METHOD_CHARACTERS = 64


def read_spec(file: Path, kind: type[SpecType]) -> SpecType:
    """Raises InputError that names the file, the field and what is wrong with it."""
    from pydantic import ValidationError

    try:
        return kind.model_validate_json(file.read_bytes())
    except OSError as error:
        raise InputError(f"{file}: {error.strerror}") from error
    except ValidationError as error:
        problems = (f"{'.'.join(map(str, e['loc'])) or 'file'}: {e['msg']}" for e in error.errors())
        raise InputError(f"{file}: {'; '.join(problems)}") from error


def read_profile(file: Path) -> SafetyProfile:
    """Raises InputError also for a relative path: workers run anywhere."""
    profile = read_spec(file, SafetyProfile)
    for field in PROFILE_FILES:
        path = getattr(profile, field)
        if path is not None and not Path(path).is_absolute():
            raise InputError(f"{file}: {field} must be an absolute path, workers run anywhere: {path}")
    return profile


def read_local_profile(file: Path) -> SafetyProfile:
    """As `read_profile`, but paths may be relative to the file's folder, as in `autoclave sanitize --gate`.
    The files must be on this machine. Raises InputError for one that is not."""
    profile = read_spec(file, SafetyProfile)
    folder = file.resolve().parent
    paths = {field: getattr(profile, field) for field in PROFILE_FILES}
    absolute = {field: None if path is None else str(folder / path) for field, path in paths.items()}
    for field, path in absolute.items():
        if path is not None and not Path(path).is_file():
            raise InputError(f"{file}: {field} is not there: {path}")
    second = profile.second_judge and absolute_judge(profile.second_judge, folder)
    return profile.model_copy(
        update={**absolute, "judge": absolute_judge(profile.judge, folder), "second_judge": second}
    )


def alignment_method_of(folder: Path) -> str | None:
    """What `autoclave align` wrote, such as "vaccine (rho 2.0), lora r 16, merged"; None if it did not make
    the folder. Raises InputError for a record that cannot be read."""
    file = folder / ALIGNMENT_RECORD
    if not file.is_file():
        return None
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        method = dict(record["method"])
        text = str(method.pop("name"))
        rank = record["lora"]["r"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file} is not what `autoclave align` writes; name --alignment-method.") from error
    settings = ", ".join(f"{name} {value}" for name, value in method.items())
    text += f" ({settings})" if settings else ""
    return f"{text}, lora r {rank}, merged"[:_MAX_METHOD_CHARACTERS]


def register_folder(
    session: Session,
    folder: Path,
    *,
    id: str,
    revision: str,
    alignment_method: str,
    default_spec: JobSpec,
    safety_profile: SafetyProfile,
    actor: Actor,
    sha256: str | None = None,
    measurements: dict[str, Any] | None = None,
) -> AlignedBase:
    """`sha256` is `folder_sha256` of the folder, if it is known. Raises InputError for a folder without any
    of the files of a base, BaseMismatchError for other weights than those of a known id."""
    return register_base(
        session,
        id=id,
        revision=revision,
        path=str(folder),
        sha256=sha256 or hash_of(folder),
        alignment_method=alignment_method,
        default_spec=default_spec,
        safety_profile=safety_profile,
        measurements=measurements,
        now=time.time(),
        actor=actor,
    )


def hash_of(folder: Path) -> str:
    try:
        return folder_sha256(folder)
    except FileNotFoundError as error:
        raise InputError(str(error)) from error
