"""Where a base comes from: a folder of this machine, or a pinned revision on a model hub."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from autoclave.errors import InputError
from autoclave.hub.models import OnBytes, model_folder
from service.bases.refusals import HUB_ID


@dataclass(frozen=True)
class BaseSource:
    """`revision` is what the operator named for a folder (None: nothing), and for a hub the commit."""

    folder: Path
    revision: str | None
    origin: str


def find_base(wanted: str, revision: str | None, *, endpoint: str | None = None) -> BaseSource:
    """The folder `wanted`, or the repository of that name, downloaded if it has to be.

    `endpoint` is another hub than huggingface.co. Raises InputError that says what is wrong: no such folder
    or repository, one that is gated, an unknown revision, no disk space, a hub that does not answer.
    """
    folder = Path(wanted).expanduser()
    if folder.is_dir():
        return BaseSource(folder.absolute(), revision, str(folder.absolute()))
    if not HUB_ID.fullmatch(wanted):
        raise InputError(f"{wanted} is no folder of this machine, and no id of a model hub (owner/name).")
    if not revision:
        raise InputError(
            f"{wanted} is no folder of this machine. If it is a model of a hub, pin it with --revision, best "
            "with the commit (40 hexadecimal digits): what a branch names changes."
        )
    return hub_source(wanted, revision, endpoint=endpoint)


def folder_source(path: str, revision: str | None) -> BaseSource:
    """Raises InputError if there is no such folder on this machine."""
    folder = Path(path)
    if not folder.is_dir():
        raise InputError(f"{path} is no folder of this machine.")
    return BaseSource(folder, revision, path)


def hub_source(
    repo_id: str, revision: str, *, endpoint: str | None = None, on_bytes: OnBytes | None = None
) -> BaseSource:
    """As `find_base`, for what is certainly of a hub. `on_bytes` as in `model_folder`."""
    snapshot = model_folder(repo_id, revision, endpoint=endpoint, on_bytes=on_bytes)
    return BaseSource(snapshot, snapshot.name, f"hub:{repo_id}@{snapshot.name}")
