"""The process of an attempt: started, watched to its end, and what its end means for the machine.

A job has a process of its own in any case. Where nothing speaks against it, that process is forked from one
that keeps the base (`workers.forking`); otherwise it is a fresh one. Imports no torch.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import structlog

from service.jobs.states import Stage
from service.settings import Settings
from service.storage import Storage
from workers.child import (
    WANDB_NAMES,
    ChildProcess,
    GroupLeader,
    Handover,
    SpawnedProcess,
    child_environment,
)
from workers.child_log import ChildLog, log_tail
from workers.endings import Ending
from workers.forking.channel import Request
from workers.forking.resident import ResidentBase
from workers.measured import MeasuredRecord
from workers.order import Order, write_order
from workers.presence import Presence
from workers.scratch_space import ScratchSpace
from workers.watch import Limits, Watch

log = structlog.get_logger(__name__)

ChildCommand = Callable[[Path, int], list[str]]
"""From the path of an order and the descriptor for messages to the arguments of the child."""


def runner_command(order: Path, descriptor: int) -> list[str]:
    return [sys.executable, "-m", "workers.runner", str(order), str(descriptor)]


def resident_base(settings: Settings, work_dir: Path) -> ResidentBase | None:
    """None where it is switched off, cannot be (it needs Linux), or would be of no use: several processes
    that train together load the base anew."""
    if not settings.resident_base_seconds or settings.worker_processes > 1 or sys.platform != "linux":
        return None
    arguments = [str(settings.resident_base_seconds), str(settings.worker_processes)]

    def command(descriptor: int) -> list[str]:
        return [sys.executable, "-m", "workers.resident_base", str(descriptor), *arguments]

    return ResidentBase(command, server_environment, log_path=work_dir / "resident-base.log")


def server_environment() -> dict[str, str]:
    """As that of a child, without what the base does not need: a job's own environment comes with the job."""
    passed = child_environment(dict(os.environ))
    named = {name: value for name, value in passed.items() if not name.startswith("AUTOCLAVE_JUDGE_")}
    # Libraries ask for a GPU while they are imported. Asked in the usual way, the driver could not be used
    # after a fork.
    return named | {"PYTORCH_NVML_BASED_CUDA_CHECK": "1"}


class JobProcesses:
    """For one worker, which runs one job at a time."""

    def __init__(
        self,
        storage: Storage,
        settings: Settings,
        limits: Limits,
        *,
        work_dir: Path,
        shutdown: threading.Event,
        child_command: ChildCommand,
        scratch_space: ScratchSpace,
    ) -> None:
        self._storage = storage
        self._limits = limits
        self._shutdown = shutdown
        self._child_command = child_command
        self._scratch_space = scratch_space
        own = child_command is runner_command
        self._resident = resident_base(settings, work_dir) if own else None

    def run(self, order: Order, record: MeasuredRecord, presence: Presence | None) -> tuple[Ending, str]:
        """As `ScratchSpace.judged`. Raises LeaseLostError."""
        return self._scratch_space.judged(
            lambda: self._watch_child(order, record, presence), Path(order.scratch)
        )

    def close(self) -> None:
        """Nobody is left afterwards."""
        if self._resident is not None:
            self._resident.end()

    def _starts(self, order: Order, order_path: Path) -> Callable[[Handover], GroupLeader]:
        def spawn(handover: Handover) -> GroupLeader:
            return SpawnedProcess(lambda descriptor: self._child_command(order_path, descriptor), handover)

        resident = self._resident
        if resident is None or order.stage is Stage.PUBLISH:  # which needs no base
            return spawn
        request = Request(order_path=str(order_path), base_path=order.base.path)
        return lambda handover: resident.fork(request, handover, spawn)

    def _watch_child(
        self, order: Order, record: MeasuredRecord, presence: Presence | None
    ) -> tuple[Ending, str]:
        scratch = Path(order.scratch)
        scratch.mkdir(parents=True, exist_ok=True, mode=0o700)
        order_path = scratch / "order.json"
        write_order(order, order_path)
        order.stop_flag.unlink(missing_ok=True)
        record.begin_child()
        child_log = ChildLog(scratch / "child.log")
        with ChildProcess(
            self._starts(order, order_path),
            log_path=scratch / "child.log",
            also_passed=self._storage.child_environment
            | (WANDB_NAMES if order.wandb is not None else frozenset()),
        ) as child:
            log.info("child started", pid=child.pid)

            def on_heartbeat() -> None:
                child_log.pass_on()
                if self._resident is not None:
                    self._resident.pass_on_log()
                if presence is not None:
                    presence.child_started(child.pid)

            if presence is not None:
                presence.child_started(child.pid)
            watch = Watch(
                child,
                record,
                self._limits,
                stop_flag=order.stop_flag,
                shutdown=self._shutdown,
                on_heartbeat=on_heartbeat,
            )
            try:
                ending = watch.run()
            finally:
                child_log.pass_on()
                record.count_start(child.base)
            log.info("child ended", pid=child.pid, base=child.base, ending=type(ending).__name__)
            return ending, log_tail(child.log_path)
