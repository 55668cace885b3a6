"""The child that adds a base: `python -m workers.bases.runner ORDER.json DESCRIPTOR`. It runs what `autoclave
base add` runs, and knows no database: what it found goes to the descriptor, and its supervisor registers it.

Exit statuses are those of `workers.runner`.
"""

from __future__ import annotations

import logging
import sys
from contextlib import closing
from pathlib import Path

import torch
from transformers.utils import logging as transformers_logging

from autoclave.commands.reporting import quiet_libraries
from autoclave.errors import AutoclaveError, CancelledError, InputError, JudgeError
from autoclave.evaluation.judges import load_judge
from autoclave.progress import Progress
from autoclave.spec import JobSpec, SafetyProfile
from service import log
from service.bases.folders import refuse_path, refuse_profile_paths
from service.bases.refusals import is_folder, lost_files
from service.bases.wording import without_text
from workers.bases.adding import check_profile, prepare_base
from workers.bases.order import RegistrationOrder, log_fields, read_order
from workers.bases.registering import read_local_profile
from workers.bases.sources import BaseSource, folder_source, hub_source
from workers.messages import BasePrepared, Failed
from workers.order import OUT_OF_MEMORY_EXIT
from workers.reporter import Reporter

logger = logging.getLogger(__name__)


def prepare(order: RegistrationOrder, reporter: Reporter) -> BasePrepared:
    """Raises InputError and its subclasses, CancelledError."""
    profile = _profile(order)
    reporter.note("checking the profile's files")
    num_near = check_profile(profile)
    if num_near:
        reporter.note(f"{num_near} prompts of harmful_eval are nearly prompts of realign")
    source = _source(order, reporter)
    reporter.note(f"{order.name} comes from {source.origin}")
    if order.store is not None:
        refuse_path(order.store, order.folders, what="store")
    prepared = prepare_base(
        source,
        profile,
        JobSpec.model_validate(order.spec),
        store=None if order.store is None else Path(order.store),
        template=order.template,
        alignment_method=order.alignment_method,
        device=order.device,
        say=reporter.note,
        registered_sha256=order.registered_sha256,
        on_progress=reporter.on_progress,
        copied_for=order.registration_id,
    )
    return BasePrepared(
        folder=str(prepared.folder),
        revision=prepared.revision,
        sha256=prepared.sha256,
        alignment_method=prepared.alignment_method,
        measurements=prepared.measurements | {"num_near_prompts": num_near},
        safety_profile=profile.model_dump(mode="json"),
    )


def _profile(order: RegistrationOrder) -> SafetyProfile:
    if order.profile_file is not None:
        refuse_path(order.profile_file, order.folders, what="profile_file")
        profile = read_local_profile(Path(order.profile_file))
    else:
        assert order.profile is not None, order.registration_id
        profile = SafetyProfile.model_validate(order.profile)
    try:
        if not order.profile_is_ours:
            refuse_profile_paths(profile, order.folders)
        load_judge(profile.judge)
    except JudgeError as error:  # about its name, so that its words may be told
        raise InputError(str(error)) from error
    if lost := lost_files(profile):
        shown = ", ".join(f"{field} ({getattr(profile, field)})" for field in lost)
        raise InputError(f"files of the profile are not on this worker: {shown}")
    return profile


def _source(order: RegistrationOrder, reporter: Reporter) -> BaseSource:
    if is_folder(order.source):
        refuse_path(order.source, order.folders, what="source")
        return folder_source(order.source, order.revision)
    assert order.revision, order.registration_id
    reporter.note(f"looking for {order.source} on the hub")

    def on_bytes(done: int, total: int) -> None:
        reporter.on_progress(Progress("download MB", done // 2**20, max(total // 2**20, 1)))

    return hub_source(order.source, order.revision, on_bytes=on_bytes)


def main(order_path: Path, descriptor: int) -> int:
    order = read_order(order_path)
    log.configure(json=True, fields=log_fields(order))
    transformers_logging.disable_progress_bar()
    quiet_libraries()
    reporter = Reporter(descriptor, order.stop_flag)
    with closing(reporter):
        return _carry_out(order, reporter)


def _carry_out(order: RegistrationOrder, reporter: Reporter) -> int:
    """The exit status."""
    try:
        reporter.say(prepare(order, reporter))
    except CancelledError:
        logger.info("stopped as asked")
    except InputError as error:
        # Not the exception itself: it may quote a prompt.
        logger.error("the base cannot be registered: %s: %s", error.code, without_text(error))
        reporter.say(Failed(code=error.code, message=without_text(error)))
    except AutoclaveError as error:
        logger.exception("the base cannot be registered")
        reporter.say(Failed(code=error.code, message=str(error)))
    except BrokenPipeError:
        raise  # nobody is there to be told
    except OSError as error:
        logger.exception("the base cannot be registered")
        text = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        reporter.say(Failed(code=InputError.code, message=text))
    except (torch.OutOfMemoryError, MemoryError):
        logger.exception("out of memory")
        return OUT_OF_MEMORY_EXIT
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
