"""The files of a base from a model hub, at a pinned revision: no pickles, no code, nothing else."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from pathlib import Path

from autoclave.disk_space import refuse_full_disk
from autoclave.errors import InputError
from autoclave.hashing import BASE_PATTERNS
from autoclave.hub.asking import Wanted, asked, cache_folder
from autoclave.modelling.base_copy import ALIGNMENT_RECORD

PATTERNS = [*BASE_PATTERNS, ALIGNMENT_RECORD]
_WATCH_SECONDS = 1.0
_BROKEN_SECONDS = 3600.0
"""A download that wrote nothing for so long was killed: its part stays, the client never goes on with it."""

OnBytes = Callable[[int, int], object]
"""Of bytes: done, and in all."""


def model_folder(
    repo_id: str, revision: str, *, endpoint: str | None = None, on_bytes: OnBytes | None = None
) -> Path:
    """The snapshot of that revision, downloaded if it has to be; its name is the commit.

    `endpoint` is another hub than huggingface.co. `on_bytes` is called while files are fetched; what it
    raises ends nothing until the download is over. Raises InputError as `asked`, and for a revision that
    holds no base.
    """
    from huggingface_hub import snapshot_download

    wanted, cache = Wanted("model", repo_id, revision), cache_folder()

    def fetch(num_bytes: int, local_only: bool) -> Path:
        with _watched(_blobs(cache, repo_id), num_bytes, on_bytes):
            snapshot = snapshot_download(
                repo_id,
                revision=revision,
                allow_patterns=PATTERNS,
                cache_dir=cache,
                endpoint=endpoint,
                local_files_only=local_only,
            )
        return Path(snapshot)

    return asked(wanted, look=lambda: _missing_bytes(wanted, cache, endpoint), fetch=fetch)


def _blobs(cache: Path, repo_id: str) -> Path:
    """Where the client keeps and writes the bytes of a model."""
    return cache / f"models--{repo_id.replace('/', '--')}" / "blobs"


@contextmanager
def _watched(blobs: Path, num_bytes: int, on_bytes: OnBytes | None) -> Iterator[None]:
    """Reports what has come, from the disk: the client's own bars differ by version and way of transfer."""
    if on_bytes is None or num_bytes == 0:
        yield
        return
    before = _size(blobs)
    over = threading.Event()

    def watch() -> None:
        while not over.wait(_WATCH_SECONDS):
            try:
                on_bytes(min(num_bytes, _size(blobs) - before), num_bytes)
            except Exception:  # whoever listens is gone, or wants an end: said again by the next report
                return

    thread = threading.Thread(target=watch, name="download", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _size(folder: Path) -> int:
    total = 0
    for file in folder.glob("*"):
        with suppress(FileNotFoundError):  # renamed meanwhile
            total += file.stat().st_size
    return total


def _forget_broken_downloads(blobs: Path) -> None:
    for file in blobs.glob("*.incomplete"):
        with suppress(OSError):
            if file.stat().st_mtime < time.time() - _BROKEN_SECONDS:
                file.unlink()


def _missing_bytes(wanted: Wanted, cache: Path, endpoint: str | None) -> int:
    """Raises InputError for a revision that holds no base, or one for which there is no room."""
    from huggingface_hub import HfApi, try_to_load_from_cache

    repo_id, what = wanted.repo_id, str(wanted)
    info = HfApi(endpoint=endpoint).model_info(repo_id, revision=wanted.revision, files_metadata=True)
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
    names = [name for name in sizes if any(fnmatch(name, pattern) for pattern in PATTERNS)]
    _refuse_without_weights(what, names)
    missing = [n for n in names if try_to_load_from_cache(repo_id, n, cache, info.sha) is None]
    num_bytes = sum(sizes[name] for name in missing)
    _forget_broken_downloads(_blobs(cache, repo_id))
    refuse_full_disk(cache, num_bytes, what=what)
    return num_bytes


def _refuse_without_weights(what: str, names: list[str]) -> None:
    if "config.json" not in names:
        raise InputError(f"{what} has no config.json: it is no transformers model.")
    if not any(name.endswith(".safetensors") for name in names):
        raise InputError(
            f"{what} has no *.safetensors weights. Pickled weights (.bin, .pt) are never loaded: look for a "
            "revision that has safetensors, or convert them with save_pretrained on a machine you can lose."
        )
