"""One process of the run: started, killed, stopped, started again. Named towards the database and by a mark.

Unlike `workers.service_process` it starts again at once, and lets others hold it down.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil  # type: ignore[import-untyped]

from workers.leash import leashed

MARK = "PYTHON_CHAOS_RUN"
"""In the environment of every process of a run; PYTHON, because a worker passes such names on to a child."""
RESTART_SECONDS = 0.5


class Process:
    """Start and tend it from one thread that lives as long as it does (`workers.leash`); any thread may kill
    it."""

    def __init__(self, name: str, arguments: list[str], *, environment: dict[str, str], folder: Path) -> None:
        self.name = name
        self.num_starts = 0
        self.clock_file = folder / f"{name}.clock"
        self.log_path = folder / f"{name}.log"
        self._arguments = arguments
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None
        self._restart_at = 0.0
        self._lock = threading.Lock()
        self.held_down = False

    def start(self) -> None:
        environment = self._environment | {
            "PGAPPNAME": f"{self.name}.{self.num_starts + 1}",
            "PYTHON_CHAOS_CLOCK": str(self.clock_file),
        }
        with self.log_path.open("ab") as log, self._lock:
            self._process = subprocess.Popen(
                leashed([sys.executable, *self._arguments]),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=environment,
            )
            self.num_starts += 1

    @property
    def pid(self) -> int:
        assert self._process is not None, f"{self.name} was never started"
        return self._process.pid

    def runs(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def tend(self) -> None:
        """Start it again if it ended."""
        if self.runs() or self.held_down:
            self._restart_at = 0.0
        elif not self._restart_at:
            self._restart_at = time.monotonic() + RESTART_SECONDS
        elif time.monotonic() >= self._restart_at:
            self._restart_at = 0.0
            self.start()

    def send(self, number: signal.Signals) -> None:
        if self.runs():
            os.kill(self.pid, number)

    def children(self) -> list[psutil.Process]:
        """With their children. None of a process that ended."""
        try:
            return list(psutil.Process(self.pid).children(recursive=True))
        except psutil.NoSuchProcess:
            return []

    def jobs(self) -> list[psutil.Process]:
        """As `children`, without the process that keeps a base for the next job."""
        found = []
        for child in self.children():
            try:
                keeps = child.ppid() == self.pid and "workers.resident_base" in child.cmdline()
            except psutil.NoSuchProcess:
                continue
            if not keeps:
                found.append(child)
        return found

    def shift_clock(self, seconds: float) -> None:
        partial = self.clock_file.with_suffix(".partial")
        partial.write_text(str(seconds))
        partial.replace(self.clock_file)

    def stop(self, *, grace_seconds: float = 30.0) -> bool:
        """SIGTERM, then SIGKILL. False if it had to be killed."""
        self.held_down = True
        self.send(signal.SIGCONT)
        self.send(signal.SIGTERM)
        if self._process is None:
            return True
        try:
            self._process.wait(grace_seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10)
            return False
        return True


def alive(process: psutil.Process) -> bool:
    """Zombies are dead: in a container nobody may ever reap them."""
    try:
        return bool(process.is_running()) and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_until_gone(processes: list[psutil.Process], *, timeout_seconds: float) -> list[psutil.Process]:
    """Those that are still there."""
    deadline = time.monotonic() + timeout_seconds
    while (left := [process for process in processes if alive(process)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


def marked(run_id: str) -> list[str]:
    """Every living process that carries the mark, found in the process table and not in our own lists."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == run_id and alive(process):
                found.append(f"{process.pid} {' '.join(process.cmdline())}")
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found
