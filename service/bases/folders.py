"""Which files of the workers' machines an admin key may name: those below BASE_FOLDERS, and no others.

A path is looked at twice: as it is written, and with its symbolic links followed where it is used. The API
asks when a registration is made, and the worker again before it opens anything: only there is the file
certain to be.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from autoclave.errors import InputError
from autoclave.evaluation.judges.names import JudgeName
from autoclave.spec import SafetyProfile

NONE = "none"
PROFILE_FILES = ("realign", "harmful_eval", "utility_eval", "alignment", "control")
"""Fields of a safety profile that are paths. Its judges may hold one, too."""

_JUDGES_WITHOUT_FILES = ("refusal",)
_JUDGES_WITH_FILES = ("exact", "classifier", "guard")


class PathRefusedError(InputError):
    code = "path_refused"


def parse_folders(text: str) -> tuple[Path, ...]:
    """`none`, or absolute folders with commas between. Raises ValueError."""
    if text.strip() in ("", NONE):
        return ()
    folders = []
    for part in text.split(","):
        path = PurePosixPath(part.strip())
        if not path.is_absolute() or ".." in path.parts or len(path.parts) < 2:
            raise ValueError(f"{part.strip()!r} is no absolute folder below /; write none, or /models,/data")
        folders.append(Path(path))
    return tuple(folders)


def refuse_path(path: str, folders: tuple[Path, ...], *, what: str) -> None:
    """`what` names the path's field. Raises PathRefusedError for one that is not, also behind its symbolic
    links, in one of `folders`."""
    if not path.startswith("/") or ".." in PurePosixPath(path).parts:
        raise PathRefusedError(f"{what}: {path!r} must be an absolute path without ..")
    if not any(Path(path).is_relative_to(folder) for folder in folders):
        allowed = ", ".join(map(str, folders)) or "none: the operator of this server allows no folder"
        raise PathRefusedError(
            f"{what}: {path!r} lies in no folder that admin keys may name (BASE_FOLDERS: {allowed})."
        )
    real = Path(path).resolve()
    if not any(real.is_relative_to(folder.resolve()) for folder in folders):
        raise PathRefusedError(f"{what}: {path!r} leads out of the folders that admin keys may name.")


def refuse_profile_paths(profile: SafetyProfile, folders: tuple[Path, ...]) -> None:
    """Raises PathRefusedError for a file, or a judge's file, that may not be named; and for a judge behind an
    address, to which the keys of the workers would be sent."""
    for field in PROFILE_FILES:
        path = getattr(profile, field)
        if path is not None:
            refuse_path(path, folders, what=f"profile.{field}")
    for field in ("judge", "second_judge"):
        name = getattr(profile, field)
        if name is not None:
            _refuse_judge(JudgeName.parse(name), folders, what=f"profile.{field}")


def _refuse_judge(judge: JudgeName, folders: tuple[Path, ...], *, what: str) -> None:
    if judge.kind in _JUDGES_WITHOUT_FILES:
        return
    if judge.kind not in _JUDGES_WITH_FILES:
        raise PathRefusedError(
            f"{what}: {judge.text!r} cannot be named here. Known are refusal, exact:FILE, classifier:DIR and "
            "guard:DIR; a judge behind an address is the operator's to choose (`autoclave base add`, or "
            "profile_of a base that has it)."
        )
    refuse_path(judge.target, folders, what=what)
