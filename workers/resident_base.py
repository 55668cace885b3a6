"""The process that keeps a base: `python -m workers.resident_base DESCRIPTOR IDLE_SECONDS PROCESSES`.

Started by a worker's supervisor (`workers.forking.resident`). It imports what a job needs, reads the base of
the first request into host memory, and forks a process for each job. It must stay fit for that: it computes
with one thread, so that OpenMP starts none, and never touches a GPU, because a driver that was used cannot be
used after a fork. `PROCESSES` is the worker's setting; 0 means one for each GPU.
"""

from __future__ import annotations

import logging
import math
import os
import socket
import sys
import time
from pathlib import Path

import numpy
import torch
from transformers.utils import logging as transformers_logging

from autoclave.errors import AutoclaveError
from autoclave.memory import weight_shapes
from autoclave.modelling.bases import LoadedBase, default_device, default_dtype, read_base
from service import log
from workers import runner
from workers.device import machine_bytes
from workers.forking.server import CannotForkError, ForkServer

logger = logging.getLogger(__name__)

MOST_OF_MEMORY = 0.5
"""A base that takes more of the machine, or of this container, is not kept: jobs need the rest."""


class Holder:
    """What is kept: a base, or nothing but the imports where it cannot be loaded; a job then tries itself and
    says why."""

    def __init__(self, num_processes: int) -> None:
        self._num_processes = num_processes
        self.base: LoadedBase | None = None

    def prepare(self, base_path: str) -> bool:
        """Whether the base is kept. Raises CannotForkError where several GPUs train together: each process of
        theirs loads the base."""
        device, num_gpus = devices()
        if self._num_processes == 0 and num_gpus > 1:
            raise CannotForkError(f"{num_gpus} GPUs train together", for_good=True)
        try:
            self.base = kept_base(Path(base_path), device)
        except (AutoclaveError, OSError, MemoryError):
            logger.exception("the base cannot be kept")
        return self.base is not None


def kept_base(folder: Path, device: str) -> LoadedBase | None:
    """In host memory, as it will be moved to `device`, and hashed. None if it would take too much of it.
    Raises ModelError."""
    began = time.monotonic()
    dtype = default_dtype(device)
    numbers = sum(math.prod(shape) for shape in weight_shapes(folder).values())
    num_bytes = numbers * getattr(torch, dtype).itemsize
    available = machine_bytes()
    if available is not None and num_bytes > MOST_OF_MEMORY * available:
        logger.warning("a base of %d bytes is not kept: the machine has %d", num_bytes, available)
        return None
    base = read_base(folder, dtype=dtype)
    digest = base.sha256  # remembered by the base, so that no job hashes its files again
    logger.info("%s is kept, read and hashed (%s) in %.1f s", folder, digest, time.monotonic() - began)
    return base


def devices() -> tuple[str, int]:
    """The default device and the number of GPUs, as a job will find them. Asked in a process that ends, for
    this one may not ask."""
    if not torch._C._has_cuda:
        return "cpu", 0
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.environ.pop("PYTORCH_NVML_BASED_CUDA_CHECK", None)
        answer = f"{default_device()} {torch.cuda.device_count()}"
        os.write(writing, answer.encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        device, _, number = pipe.read().partition(" ")
    os.waitpid(pid, 0)
    if not number:
        raise CannotForkError("no forked process can use the GPU", for_good=True)
    return device, int(number)


def unfit() -> str | None:
    """Why this process, just forked, cannot do a job. Also draws new seeds where a fresh one has its own
    (what depends on a seed of the job sets it); `random` and what builds on it do so themselves."""
    if torch.cuda._is_in_bad_fork():
        return "a library used the GPU before the fork"
    torch.seed()
    numpy.random.seed()
    return None


def main(descriptor: int, idle_seconds: float, num_processes: int) -> int:
    """In the server and in every process that it forks: the exit status."""
    log.configure(json=True, fields={"process": "resident base"})
    # It would start a thread, too.
    transformers_logging.disable_progress_bar()
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    holder = Holder(num_processes)
    with socket.socket(fileno=descriptor) as control:
        task = ForkServer(control, prepare=holder.prepare, unfit=unfit, idle_seconds=idle_seconds).run()
    if task is None:
        logger.info("nobody wants the base any more")
        return 0
    return runner.main(task.order_path, task.messages, base=holder.base, num_threads=num_threads)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])))
