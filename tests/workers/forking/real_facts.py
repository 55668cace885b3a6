"""The real child and the real process that keeps a base, but for the stages: a job says what it found.

`python -m tests.workers.forking.real_facts fresh ORDER FD`, or `.. server FD IDLE_SECONDS PROCESSES`.
"""

from __future__ import annotations

import ctypes
import hashlib
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy
import torch

from autoclave.hashing import file_sha256
from workers import resident_base, runner
from workers.attempt import Attempt

_LIBRARY = Path(torch.__path__[0]) / "lib" / "libtorch_cpu.so"


def mkl_chooses() -> int | None:
    """Whether MKL may take fewer threads than it was told."""
    library = ctypes.CDLL(str(_LIBRARY))
    return library.mkl_serv_get_dynamic() if hasattr(library, "mkl_serv_get_dynamic") else None


def same() -> dict[str, Any]:
    return {
        "threads": torch.get_num_threads(),
        "threads_between_operations": torch.get_num_interop_threads(),
        "mkl_chooses": mkl_chooses(),
        "dtype": str(torch.get_default_dtype()),
        "grad": torch.is_grad_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }


def of_base(attempt: Attempt) -> dict[str, Any]:
    base = attempt.bare_base()
    weights = {name: weight.numpy().tobytes() for name, weight in base.model.named_parameters()}
    return {
        "base": attempt.order.base.id,
        "sha256": base.sha256,
        "weights": hashlib.sha256(b"".join(weights[name] for name in sorted(weights))).hexdigest(),
        "training": base.model.training,
        "trainable": [name for name, weight in base.model.named_parameters() if weight.requires_grad],
        "tokens": base.tokenizer("some words").input_ids,
    }


def report(attempt: Attempt) -> None:
    """Then writes all over the base, which is nobody else's business."""
    facts = {"at_start": same(), "of_base": of_base(attempt), "with_base": same()}
    own = {
        "random": random.random(),
        "numpy": numpy.random.rand(),
        "torch": torch.initial_seed(),
        "name": tempfile.mktemp(),
    }
    file = Path(attempt.order.base.path) / "config.json"
    attempt.reporter.note("facts", same=facts, own=own, config=file_sha256(file))
    with torch.no_grad():
        for weight in attempt.bare_base().model.parameters():
            weight.zero_()
    torch.manual_seed(7)
    torch.set_num_threads(1)


if __name__ == "__main__":
    runner.run_pipeline = report
    if sys.argv[1] == "fresh":
        sys.exit(runner.main(Path(sys.argv[2]), int(sys.argv[3])))
    sys.exit(resident_base.main(int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])))
