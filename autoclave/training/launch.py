"""Starts several processes of this machine that train together: torchrun's launcher, called as a function.

The function and not the command, because the command gives each process a session of its own, which a signal
to the caller's process group does not reach, and listens on all network interfaces. Here the processes stay
in the caller's group, find each other through files, and talk over the loopback interface.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from autoclave.error_records import decode, encode
from autoclave.errors import AutoclaveError, OtherRankError, RankLostError
from autoclave.training.rank_environment import STORE_FILE, rank_of

_TERMINATE_SECONDS = 5
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
# What they say of a process that fails is said again by the error that is raised, in fewer words.
_LOUD_LOGGERS = ("torch.distributed.elastic", "torch.multiprocessing", "torch.distributed.launcher")


def run_ranks(
    function: Callable[..., Any],
    *arguments: Any,
    num_processes: int,
    errors: tuple[type[Exception], ...] = (),
) -> Any:
    """What `function(*arguments)` returns on rank 0 of `num_processes` new processes, all of which call it.
    The function is importable; it, its arguments and its result can be pickled.

    When a process raises or dies, the others are ended within seconds. Raises what the function raised on the
    first rank that has a reason of its own (a RuntimeError with its words, where the class is neither among
    `errors` nor one that `autoclave.error_records` knows), or RankLostError for a process that just ended. A
    signal that would end this process ends the others first.
    """
    with tempfile.TemporaryDirectory(prefix="autoclave-ranks-") as name, _as_before(), _quiet_launcher():
        folder = Path(name)
        # Without it the launcher opens a port on all interfaces, which nothing here needs.
        os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=num_processes,
            run_id="autoclave",
            rdzv_backend="c10d",
            rdzv_endpoint=str(folder / "rendezvous"),
            rdzv_configs={"store_type": "file"},
            local_addr="127.0.0.1",
            max_restarts=0,
            start_method="spawn",
            logs_specs=DefaultLogsSpecs(log_dir=str(folder / "logs")),
            shutdown_timeout=_TERMINATE_SECONDS,
        )
        try:
            return elastic_launch(config, _rank_main)(folder, function, arguments)[0]
        except ChildFailedError as error:
            raise _reason(folder, num_processes, error, (*errors, torch.OutOfMemoryError)) from None
        except SignalException as error:
            ended_by = error.sigval
    # As if nobody had caught it.
    os.kill(os.getpid(), ended_by)
    raise AssertionError(f"{ended_by.name} is handled by somebody who lets this process live")


def _rank_main(folder: Path, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    os.environ[STORE_FILE] = str(folder / "store")
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
    rank = rank_of(os.environ)
    try:
        result = function(*arguments)
    except Exception as error:
        if not isinstance(error, AutoclaveError):
            traceback.print_exc()
        partial = folder / f"partial-{rank}"
        partial.write_text(encode(error))
        partial.rename(folder / f"error-{rank}")  # we may be ended in the middle of writing
        raise SystemExit(1) from None
    return result if rank == 0 else None


def _reason(
    folder: Path, num_processes: int, error: ChildFailedError, errors: tuple[type[Exception], ...]
) -> Exception:
    """The error of the lowest rank that failed by itself; else who is missing."""
    for rank in range(num_processes):
        path = folder / f"error-{rank}"
        if path.exists():
            raised = decode(path.read_text(), errors)
            if not isinstance(raised, OtherRankError):
                return raised
    for rank, failure in error.failures.items():
        if not (folder / f"error-{rank}").exists():
            return RankLostError(rank, num_processes, failure.exitcode)
    # All who were seen to fail had lost another one.
    quiet = [rank for rank in range(num_processes) if not (folder / f"error-{rank}").exists()]
    return RankLostError(quiet[0] if quiet else 0, num_processes)


@contextmanager
def _as_before() -> Iterator[None]:
    """Puts back the signal handlers and the environment that the launcher changes."""
    names = ("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "TORCHELASTIC_SIGNALS_TO_HANDLE")
    values = {name: os.environ.get(name) for name in names}
    is_main = threading.current_thread() is threading.main_thread()
    handlers = {number: signal.getsignal(number) for number in _SIGNALS} if is_main else {}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for name, value in values.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def _quiet_launcher() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in _LOUD_LOGGERS]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
