"""Adding a base: cheap refusals first, then the folder, then loading and measuring, and its row last."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoclave.data.sets.check import read_prompt_set, shared_prompts
from autoclave.errors import BaseMismatchError, InputError
from autoclave.evaluation.judges import load_judge
from autoclave.modelling.base_copy import copy_base, delete_broken_copies, is_copy_for
from autoclave.modelling.base_files import read_base_files
from autoclave.progress import Progress, ProgressCallback
from autoclave.spec import JobSpec, SafetyProfile
from service.bases.refusals import refuse_profile_files
from workers.bases.registering import alignment_method_of, hash_of
from workers.bases.sources import BaseSource

Say = Callable[[str], object]


@dataclass(frozen=True)
class PreparedBase:
    """Ready to be registered. `measurements` as in docs/bases.md; without `floor` nothing was measured."""

    folder: Path
    revision: str
    sha256: str
    alignment_method: str
    measurements: dict[str, Any]


def check_profile(profile: SafetyProfile) -> int:
    """What a job would find in its prepare stage about files and judge, minutes earlier. Returns how many
    prompts of `harmful_eval` are nearly prompts of `realign`, which is allowed but should be known. Raises
    InputError and its subclasses."""
    load_judge(profile.judge)
    refuse_profile_files(profile)
    learned, measured = (read_prompt_set(Path(file)) for file in (profile.realign, profile.harmful_eval))
    shared = shared_prompts(learned, measured)
    return int(shared["exact"] + shared["near"])


def prepare_base(
    source: BaseSource,
    profile: SafetyProfile,
    spec: JobSpec,
    *,
    store: Path | None,
    template: str | None,
    alignment_method: str | None,
    device: str | None,
    say: Say,
    registered_sha256: str | None = None,
    on_progress: ProgressCallback | None = None,
    copied_for: str | None = None,
) -> PreparedBase:
    """`store` is a new folder for a copy; without it the source's own folder is registered, and whatever
    would have to be changed there is refused. `registered_sha256` is the hash under which the name is known.
    A copy that an earlier attempt made with the same `copied_for` is used as it is.
    Raises InputError and its subclasses, BaseMismatchError before the measurement."""
    folder = source.folder
    if store is not None:
        folder = store.expanduser().absolute()
        _copy(source.folder, folder, template, copied_for, say=say, on_progress=on_progress)
    elif template is not None:
        raise InputError(
            "--template changes the folder of the base, which is never done in place: name a new folder with "
            "--store."
        )
    try:
        read_base_files(folder)
        say("hashing")
        sha256 = hash_of(folder)
        if registered_sha256 not in (None, sha256):
            raise BaseMismatchError(
                f"the name is registered with the hash {registered_sha256}, and this folder's is {sha256}. "
                "Adapters are valid only on the weights they were made for: choose another name."
            )
        measurements = measure(folder, profile, spec, device=device, say=say, on_progress=on_progress)
        if hash_of(folder) != sha256:
            raise InputError(
                f"{folder} changed while it was measured; let nothing write there, and try again."
            )
    except InputError:
        if store is not None:
            say(f"the copy stays: try again with --from {folder}, or delete it")
        raise
    return PreparedBase(
        folder=folder,
        revision=source.revision or sha256[:12],
        sha256=sha256,
        alignment_method=alignment_method or alignment_method_of(folder) or "unknown",
        measurements={"origin": source.origin, **measurements},
    )


def _copy(
    source: Path,
    folder: Path,
    template: str | None,
    copied_for: str | None,
    *,
    say: Say,
    on_progress: ProgressCallback | None,
) -> None:
    if copied_for is not None:
        if is_copy_for(folder, copied_for):
            say(f"{folder} was copied by an earlier attempt")
            return
        delete_broken_copies(folder, copied_for)
    say(f"copying {source} to {folder}")
    on_bytes = _bytes_of(on_progress)
    for change in copy_base(source, folder, template=template, on_bytes=on_bytes, mark=copied_for):
        say(f"changed in the copy: {change}")


def measure(
    folder: Path,
    profile: SafetyProfile,
    spec: JobSpec,
    *,
    device: str | None,
    say: Say,
    on_progress: ProgressCallback | None,
) -> dict[str, Any]:
    """Loads the base, checks it against the spec, and measures floor and speed on the profile's prompts."""
    from autoclave.evaluation.base_check import check_base
    from autoclave.evaluation.base_measures import measure_base

    say("loading")
    checked = check_base(folder, spec.lora, device=device)
    for note in checked.notes:
        say(f"note: {note}")
    say("measuring harmful score and speed")
    measured = measure_base(
        checked.base,
        harmful_eval=profile.harmful_eval,
        judge_name=profile.judge,
        spec=profile.evaluate,
        on_progress=on_progress,
    )
    return {
        **measured,
        "model": checked.as_dict(),
        "safety_profile_version": profile.version,
        "measured_at": time.time(),
    }


def _bytes_of(on_progress: ProgressCallback | None) -> Callable[[int, int], object] | None:
    if on_progress is None:
        return None

    def report(done: int, total: int) -> None:
        on_progress(Progress("copy MB", done // 2**20, max(total // 2**20, 1)))

    return report
