"""What a worker's jobs compute on, and how much of its memory is used. Never imports torch: asks the
driver's own `nvidia-smi` where there is one, and the kernel otherwise."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import structlog

from workers.processes import group_resident_bytes

log = structlog.get_logger(__name__)

ASK_SECONDS = 10.0
"""Between two questions to `nvidia-smi`: each starts a process and wakes the driver."""
_ANSWER_SECONDS = 10.0
_MIB = 1024 * 1024
_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
_MEMINFO = Path("/proc/meminfo")
_CPUINFO = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class DeviceReading:
    kind: str
    """`cuda` or `cpu`."""
    name: str
    memory_used_bytes: int | None
    memory_total_bytes: int | None
    memory_each_bytes: int | None
    """Of the smallest card; of the machine where there is none."""


class Device:
    """The accelerators in CUDA_VISIBLE_DEVICES (all, if it is not set), or else this machine's processor.

    `visible` is that variable. Numbers in it are taken for the driver's, in the order of the bus: set
    CUDA_DEVICE_ORDER=PCI_BUS_ID where a machine has cards of several kinds.
    """

    def __init__(self, visible: str | None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._visible = visible
        self._clock = clock
        self._program = None if visible in ("", "-1") else shutil.which("nvidia-smi")
        self._last: DeviceReading | None = None
        self._asked_at = 0.0

    def reading(self, child_pid: int | None) -> DeviceReading:
        """`child_pid` leads the process group of the job that runs now, if one does."""
        if self._program is not None:
            now = self._clock()
            if self._last is None or now - self._asked_at >= ASK_SECONDS:
                self._last = self._ask_driver(self._program)
                self._asked_at = now
            if self._last is not None:
                return self._last
            # A driver that has no card, or is broken: jobs run on the processor then.
            self._program = None
        used = None if child_pid is None else group_resident_bytes(child_pid)
        total = machine_bytes()
        return DeviceReading("cpu", _processor_name(), used, total, total)

    def _ask_driver(self, program: str) -> DeviceReading | None:
        chosen = [] if self._visible is None else [f"--id={self._visible}"]
        command = [program, "--query-gpu=name,memory.used,memory.total", "--format=csv,noheader,nounits"]
        try:
            answer = subprocess.run(
                [*command, *chosen], capture_output=True, text=True, timeout=_ANSWER_SECONDS, check=True
            )
            return _parsed(answer.stdout)
        except (OSError, subprocess.SubprocessError, ValueError) as error:
            if self._last is not None:
                return self._last  # it answered before; a busy driver is late at times
            log.warning("nvidia-smi gives no answer; this worker shows its processor", error=str(error))
            return None


def _parsed(answer: str) -> DeviceReading:
    """Lines of "name, MiB used, MiB in all"; several cards are one device with the sum. Raises ValueError."""
    names, used, totals = [], 0, []
    for line in answer.strip().splitlines():
        name, used_mib, total_mib = line.rsplit(",", 2)
        names.append(name.strip())
        used += int(used_mib) * _MIB
        totals.append(int(total_mib) * _MIB)
    if not names:
        raise ValueError("it names no card")
    name = names[0] if len(names) == 1 else f"{len(names)} x {names[0]}"
    return DeviceReading("cuda", name, used, sum(totals), min(totals))


def _processor_name() -> str:
    if _CPUINFO.exists():
        for line in _CPUINFO.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def machine_bytes() -> int | None:
    """What this machine has, or this container may use of it."""
    if not _MEMINFO.exists():
        return None
    kib = int(_MEMINFO.read_text().split("MemTotal:")[1].split()[0])
    limit = _CGROUP_LIMIT.read_text().strip() if _CGROUP_LIMIT.exists() else "max"
    return min(kib * 1024, int(limit)) if limit.isdigit() else kib * 1024


def own_device() -> Device:
    return Device(os.environ.get("CUDA_VISIBLE_DEVICES"))
