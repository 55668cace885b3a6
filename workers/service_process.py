"""One long-running process of the embedded service: started, kept running, stopped with its whole group.

A process that dies is started again, later each time; one that ran for a minute begins from the first
pause anew. Leashed: `kill -9` of the process that started it takes it along.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import structlog

from workers.leash import leashed
from workers.processes import group_alive, kill_group, signal_group, tail

log = structlog.get_logger(__name__)

FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 30.0
HEALTHY_AFTER_SECONDS = 60.0
KEPT_LOG_BYTES = 10 * 1024 * 1024


class ServiceProcess:
    """Start, tend and stop it from one thread that lives until it is stopped (see `workers.leash`)."""

    def __init__(self, name: str, command: list[str], *, environment: dict[str, str], log_path: Path) -> None:
        self.name = name
        self.num_starts = 0
        self._command = command
        self._environment = environment
        self._log_path = log_path
        self._process: subprocess.Popen[bytes] | None = None
        self._started_at = 0.0
        self._pause_seconds = FIRST_PAUSE_SECONDS
        self._restart_at: float | None = None

    def start(self) -> None:
        if self._log_path.exists() and self._log_path.stat().st_size > KEPT_LOG_BYTES:
            self._log_path.replace(self._log_path.with_suffix(".log.1"))
        with self._log_path.open("ab") as output:
            self._process = subprocess.Popen(
                leashed(self._command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=self._environment,
            )
        self._started_at = time.monotonic()
        self._restart_at = None
        self.num_starts += 1

    @property
    def pid(self) -> int:
        assert self._process is not None, f"{self.name} was never started"
        return self._process.pid

    def exit_code(self) -> int | None:
        """None while it runs."""
        assert self._process is not None, f"{self.name} was never started"
        return self._process.poll()

    def last_words(self) -> str:
        """The last line of its log."""
        lines = tail(self._log_path, 2048).strip().splitlines()
        return lines[-1] if lines else "it wrote nothing"

    def tend(self) -> None:
        """Start it again if it died and its pause is over."""
        exit_code = self.exit_code()
        now = time.monotonic()
        if exit_code is None:
            if now - self._started_at > HEALTHY_AFTER_SECONDS:
                self._pause_seconds = FIRST_PAUSE_SECONDS
            return
        if self._restart_at is None:
            kill_group(self.pid)
            log.warning(
                "process ended; starting it again",
                name=self.name,
                exit_code=exit_code,
                in_seconds=self._pause_seconds,
                last_words=self.last_words(),
            )
            self._restart_at = now + self._pause_seconds
            self._pause_seconds = min(2 * self._pause_seconds, LONGEST_PAUSE_SECONDS)
        elif now >= self._restart_at:
            self.start()

    def ask_to_stop(self) -> None:
        """SIGTERM to the process alone: it ends its own children, in its order."""
        if self._process is not None and self._process.poll() is None:
            os.kill(self._process.pid, signal.SIGTERM)

    def stop(self, *, grace_seconds: float, hurry: threading.Event) -> None:
        """Ask, wait, then SIGKILL the group; at once when `hurry` is set. Nobody of it is left then."""
        if self._process is None:
            return
        self.ask_to_stop()
        give_up_at = time.monotonic() + grace_seconds
        while self._process.poll() is None:
            if hurry.is_set() or time.monotonic() > give_up_at:
                log.warning("process does not stop; killing it", name=self.name, pid=self.pid)
                signal_group(self.pid, signal.SIGKILL)
                self._process.wait(timeout=10)
            else:
                time.sleep(0.02)
        kill_group(self.pid)
        assert not group_alive(self.pid), f"processes of {self.name} are left in group {self.pid}"
