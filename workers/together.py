"""A stage that several processes of this attempt do together: started, heard and ended by the child.

    supervisor <- pipe - child <- pipe - rank 0, 1, ...

The ranks are in the child's process group, so that whatever ends the child's group ends them, and die with
the child if it alone is killed. What rank 0 says goes through the child's reporter, which has listeners.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection

import msgspec
import torch
from transformers.utils import logging as transformers_logging

from autoclave.modelling.bases import default_device
from autoclave.training.launch import run_ranks
from autoclave.training.ranks import Ranks, joined_ranks
from service import log
from service.storage import (
    BucketMissingError,
    StorageCorruptError,
    StorageFullError,
    StorageRefusedError,
    StorageUnavailableError,
    storage_from_url,
)
from workers.attempt import Attempt, StageError
from workers.leash import tie_to_parent
from workers.messages import StageFinished, decode
from workers.order import Order, log_fields
from workers.reporter import Reporter

logger = logging.getLogger(__name__)

StageOfRanks = Callable[[Attempt, Ranks], StageFinished]
"""A stage in one of its processes; importable. The message of rank 0 counts."""

RAISED_AGAIN: tuple[type[Exception], ...] = (
    StageError,
    BucketMissingError,
    StorageCorruptError,
    StorageFullError,
    StorageRefusedError,
    StorageUnavailableError,
)
"""What the child tells apart, beside the errors of the library (`workers.runner`)."""


def num_processes(order: Order, device: str) -> int:
    """How many train together: what the worker was told, but no more than there are GPUs (on a CPU any
    number), nor more than a step has conversations. Fewer give the same result, later."""
    num_gpus = torch.cuda.device_count() if device.startswith("cuda") else None
    wanted = order.num_processes or num_gpus or 1
    if num_gpus is not None and wanted > num_gpus:
        logger.warning("%d processes were asked for, and %d GPUs are visible", wanted, num_gpus)
        wanted = num_gpus
    return min(wanted, order.job_spec().train.batch_size)


def run_together(attempt: Attempt, stage: StageOfRanks, count: int) -> StageFinished:
    """Raises what the stage raises on a rank, and RankLostError if one of them is gone."""
    order = msgspec.structs.replace(attempt.order, stage_outputs=attempt.outputs)
    for file in (order.training_file, order.validation_file):
        if file is not None:
            attempt.dataset(file)  # once, and not by every rank in the same place
    attempt.forget_base()  # rank 0 needs the memory
    reading, writing = multiprocessing.get_context("spawn").Pipe(duplex=False)
    listener = threading.Thread(target=_pass_on, args=(reading, attempt.reporter), name="ranks", daemon=True)
    listener.start()
    try:
        finished: StageFinished = run_ranks(
            _rank, order, stage, writing, os.getpid(), num_processes=count, errors=RAISED_AGAIN
        )
    finally:
        writing.close()
        listener.join()
    return finished


def _pass_on(reading: Connection, reporter: Reporter) -> None:
    """Until every writer has closed its end. Closing ours, should the supervisor be gone, tells rank 0."""
    with reading, os.fdopen(os.dup(reading.fileno()), "rb") as pipe:
        for line in pipe:
            try:
                reporter.say(decode(line))
            except msgspec.DecodeError as error:
                logger.warning("unreadable message from a rank: %s", error)  # it died in the middle of a line
            except BrokenPipeError:
                return


def _rank(order: Order, stage: StageOfRanks, pipe: Connection, parent_pid: int) -> StageFinished:
    tie_to_parent(parent_pid)
    with joined_ranks(default_device()) as ranks:
        log.configure(json=True, fields={**log_fields(order), "rank": ranks.rank})
        transformers_logging.disable_progress_bar()
        descriptor = os.dup(pipe.fileno()) if ranks.is_first else os.open(os.devnull, os.O_WRONLY)
        pipe.close()
        reporter = Reporter(descriptor, order.stop_flag)
        attempt = Attempt(order, storage_from_url(order.storage_url), reporter, device=ranks.device)
        return stage(attempt, ranks)
