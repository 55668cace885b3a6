"""What can be refused of a registration before a worker sees it: everything that needs no model.

Files are looked at only where this machine has them: in a distributed deployment the models lie with the
workers, and a worker looks again in any case.
"""

from __future__ import annotations

import re
from pathlib import Path

from autoclave.data.chat_templates import TEMPLATES
from autoclave.data.conversations import check_file
from autoclave.data.overlap import refuse_overlap
from autoclave.data.realignment import read_realignment
from autoclave.errors import InputError
from autoclave.modelling.base_files import read_base_files
from autoclave.spec import SafetyProfile
from service.bases.folders import PROFILE_FILES, refuse_path

HUB_ID = re.compile(r"[A-Za-z0-9_][\w.-]*/[\w.-]+")


def is_folder(source: str) -> bool:
    """Everything else is an id of a model hub: never a folder that is relative to wherever a worker runs."""
    return source.startswith("/")


def refuse_source(source: str, revision: str | None, folders: tuple[Path, ...]) -> None:
    """Raises InputError for what is neither an allowed folder nor a pinned id of a hub."""
    if is_folder(source):
        refuse_path(source, folders, what="source")
    elif not HUB_ID.fullmatch(source):
        raise InputError(f"source: {source!r} is no absolute folder and no id of a model hub (owner/name).")
    elif not revision:
        raise InputError(
            f"{source} of a model hub needs a revision, best the commit (40 hexadecimal digits): what a "
            "branch names changes."
        )


def refuse_store(store: str | None, template: str | None, folders: tuple[Path, ...]) -> None:
    """Raises InputError for a copy that may not be written there, or a template without a copy."""
    if template is not None and template not in TEMPLATES:
        raise InputError(f"unknown chat template {template!r}; known: {', '.join(TEMPLATES)}.")
    if store is not None:
        refuse_path(store, folders, what="store")
    elif template is not None:
        raise InputError(
            "a template changes the folder of the base, which is never done in place: name a "
            "new folder in store."
        )


def refuse_folder(source: str, *, is_copied: bool) -> None:
    """If this machine has the folder: raises ModelError for one that is no base. `is_copied`: what a copy
    leaves out is not held against it."""
    folder = Path(source)
    if is_folder(source) and folder.is_dir() and not is_copied:
        read_base_files(folder)


def refuse_profile_files(profile: SafetyProfile) -> None:
    """What a job would find in its prepare stage about the files. Raises InputError and its subclasses, whose
    text may quote a prompt."""
    read_realignment(profile.realign)
    refuse_overlap(profile.realign, profile.harmful_eval)
    if profile.alignment is not None:
        check_file(profile.alignment, min_examples=1)
        refuse_overlap(profile.alignment, profile.harmful_eval)


def has_files(profile: SafetyProfile) -> bool:
    """Whether this machine has all of them."""
    return not lost_files(profile)


def lost_files(profile: SafetyProfile) -> list[str]:
    """Fields of the profile whose files are not on this machine."""
    named = ((field, getattr(profile, field)) for field in PROFILE_FILES)
    return [field for field, path in named if path is not None and not Path(path).is_file()]
