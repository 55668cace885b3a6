"""One file of a dataset on a model hub, at a pinned revision."""

from __future__ import annotations

import re
from difflib import get_close_matches
from pathlib import Path
from typing import NamedTuple

from autoclave.disk_space import refuse_full_disk
from autoclave.errors import InputError
from autoclave.hub.asking import Wanted, asked, cache_folder

_COMMIT = re.compile(r"[0-9a-f]{40}")
_FEW = 5


class HubFile(NamedTuple):
    path: Path
    commit: str


def dataset_file(repo_id: str, file: str, revision: str, *, endpoint: str | None = None) -> HubFile:
    """Downloaded if it has to be; a commit that is here is not asked for again.

    `endpoint` is another hub than huggingface.co. Raises InputError as `asked`, and for a file that the
    dataset does not have.
    """
    from huggingface_hub import hf_hub_download

    wanted, cache = Wanted("dataset", repo_id, revision, file), cache_folder()

    def fetch(_num_bytes: int, local_only: bool) -> Path:
        path = hf_hub_download(
            repo_id,
            file,
            repo_type="dataset",
            revision=revision,
            cache_dir=cache,
            endpoint=endpoint,
            local_files_only=local_only,
        )
        return Path(path)

    path = asked(wanted, look=lambda: _missing_bytes(wanted, file, cache, endpoint), fetch=fetch)
    return HubFile(path, path.relative_to(cache.absolute()).parts[2])


def _missing_bytes(wanted: Wanted, file: str, cache: Path, endpoint: str | None) -> int:
    from huggingface_hub import HfApi, try_to_load_from_cache

    def is_here(commit: str) -> bool:
        return isinstance(
            try_to_load_from_cache(wanted.repo_id, file, cache, commit, repo_type="dataset"), str
        )

    if _COMMIT.fullmatch(wanted.revision) and is_here(wanted.revision):
        return 0  # nothing about it can have changed
    info = HfApi(endpoint=endpoint).dataset_info(
        wanted.repo_id, revision=wanted.revision, files_metadata=True
    )
    sizes = {entry.rfilename: entry.size or 0 for entry in info.siblings or ()}
    if file not in sizes:
        raise InputError(f"{wanted} is not there. {_has(file, sorted(sizes))}")
    if info.sha is not None and is_here(info.sha):
        return 0
    refuse_full_disk(cache, sizes[file], what=str(wanted))
    return sizes[file]


def _has(file: str, names: list[str]) -> str:
    if not names:
        return "The dataset has no files."
    close = get_close_matches(file, names, n=_FEW) or names[:_FEW]
    more = f", and {len(names) - len(close)} others" if len(names) > len(close) else ""
    return f"The dataset has {', '.join(close)}{more}."
