"""Where a base comes from: a folder of this machine, or a pinned revision on a model hub.

The hub is asked by the operator's commands only, never by a job. With HF_HUB_OFFLINE only what was
downloaded before is used. Of a repository nothing is fetched but the files of a base: no pickles, no code.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from autoclave.disk_space import refuse_full_disk
from autoclave.errors import InputError
from autoclave.hashing import BASE_PATTERNS
from autoclave.modelling.base_copy import ALIGNMENT_RECORD
from service.bases.refusals import HUB_ID

PATTERNS = [*BASE_PATTERNS, ALIGNMENT_RECORD]
_WATCH_SECONDS = 1.0
_BROKEN_SECONDS = 3600.0
"""A download that wrote nothing for so long was killed: its part stays, the client never goes on with it."""

OnBytes = Callable[[int, int], object]
"""Of bytes: done, and in all."""


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
    """As `find_base`, for what is certainly of a hub. `on_bytes` is called while files are fetched; what it
    raises ends nothing until the download is over."""
    snapshot = _download(repo_id, revision, endpoint, on_bytes)
    return BaseSource(snapshot, snapshot.name, f"hub:{repo_id}@{snapshot.name}")


def _download(repo_id: str, revision: str, endpoint: str | None, on_bytes: OnBytes | None) -> Path:
    from huggingface_hub import constants, errors, is_offline_mode, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    cache = Path(constants.HF_HUB_CACHE)
    offline = is_offline_mode()
    reachable = not offline
    what = f"{repo_id} at revision {revision}"
    num_bytes = 0
    try:
        if not offline:
            try:
                num_bytes = _refuse_what_cannot_be_fetched(repo_id, revision, endpoint, cache, what)
            except (InputError, HfHubHTTPError, errors.HFValidationError):
                raise
            except Exception:  # of whichever HTTP library the client uses: there is no connection
                reachable = False  # what was downloaded before will do
        with _watched(_blobs(cache, repo_id), num_bytes, on_bytes):
            snapshot = snapshot_download(
                repo_id,
                revision=revision,
                allow_patterns=PATTERNS,
                cache_dir=cache,
                endpoint=endpoint,
                local_files_only=not reachable,
            )
        return Path(snapshot)
    except errors.GatedRepoError:
        text = (
            f"{repo_id} is gated. Accept its terms on its page with your account, and give this command a "
            "token of that account (`hf auth login`, or HF_TOKEN)."
        )
    except errors.RevisionNotFoundError:
        text = f"{repo_id} has no revision {revision}. Look up the commit on the page of its files."
    except errors.RepositoryNotFoundError:
        text = f"there is no model {repo_id} on the hub, or it is private: then HF_TOKEN must be its owner's."
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled):
        reason = "HF_HUB_OFFLINE is set" if offline else "the hub does not answer"
        text = (
            f"{what} is not, or not as a whole, in the local cache {cache}, and {reason}. Download it "
            f"where there is a network: hf download {repo_id} --revision {revision}"
        )
    except (HfHubHTTPError, errors.HFValidationError) as error:
        text = f"the hub refuses {what}: {str(error).splitlines()[0]}"
    except InputError:
        raise
    except Exception as error:  # a disk, or a connection that broke, of whichever HTTP library
        raise InputError(
            f"{what} could not be downloaded to {cache}: {str(error) or type(error).__name__}. Whole files "
            "that came stay there: try again to fetch the others."
        ) from error
    raise InputError(text)


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


def _refuse_what_cannot_be_fetched(
    repo_id: str, revision: str, endpoint: str | None, cache: Path, what: str
) -> int:
    """The bytes that are not here yet. Raises InputError for a revision that holds no base, or one for which
    there is no room."""
    from huggingface_hub import HfApi, try_to_load_from_cache

    info = HfApi(endpoint=endpoint).model_info(repo_id, revision=revision, files_metadata=True)
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
