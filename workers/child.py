"""One child process: in its own session and process group, heard through a pipe, ended for good.

Knows nothing about jobs or databases, nor how the process comes to be: spawned afresh, or forked from one
that holds a base (`workers.forking`). The child is leashed: should this process be killed, the kernel kills
the child.
"""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Protocol, Self

import msgspec
import structlog

from workers.leash import leashed
from workers.messages import AnyMessage, decode
from workers.processes import kill_group, signal_group

log = structlog.get_logger(__name__)

# What a child needs of our environment. A list of what may pass, not of what may not: our own holds the
# passwords of the database and of the broker.
_PASSED_NAMES = frozenset(
    {"PATH", "HOME", "USER", "LANG", "TZ", "TMPDIR", "VIRTUAL_ENV", "LD_LIBRARY_PATH", "LD_PRELOAD"}
)
_PASSED_PREFIXES = (
    *("LC_", "PYTHON", "CUDA_", "NVIDIA_", "NCCL_", "OMP_", "MKL_", "TORCH", "PYTORCH_"),
    "AUTOCLAVE_JUDGE_",  # keys of moderation endpoints, docs/judges.md
)
WANDB_NAMES = frozenset({"WANDB_API_KEY", "WANDB_BASE_URL"}) | {
    case(name)
    for name in ("https_proxy", "http_proxy", "no_proxy", "ssl_cert_file", "requests_ca_bundle")
    for case in (str.lower, str.upper)
}
"""What a job that sends figures to Weights & Biases needs too; no other job gets it."""
# Threads of a small model wait for each other thousands of times a second; on a machine that others use
# too, waiting by spinning made training five times slower (measured: 13 s instead of 2.5).
_DEFAULTS = {"OMP_WAIT_POLICY": "PASSIVE"}
_FIXED = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def child_environment(
    environment: dict[str, str], also_passed: frozenset[str] = frozenset()
) -> dict[str, str]:
    passed = {
        name: value
        for name, value in environment.items()
        if name in _PASSED_NAMES | also_passed or name.startswith(_PASSED_PREFIXES)
    }
    return _DEFAULTS | passed | _FIXED


@dataclass(frozen=True)
class Handover:
    """What a child is given: two descriptors, which the giver closes, and its environment."""

    messages: int
    log: int
    environment: dict[str, str]


BaseOf = Literal["resident", "loaded", "fresh"]
"""Of a child: whether its base was there already, was loaded for it by the process that it is forked from, or
is its own affair."""


class GroupLeader(Protocol):
    """A process that leads a group of its own."""

    @property
    def base(self) -> BaseOf: ...

    @property
    def pid(self) -> int: ...

    def exit_code(self) -> int | None:
        """None while it runs; negative is the number of the signal that ended it."""

    def send(self, number: signal.Signals) -> None:
        """To the whole group: it is to end."""

    def wait(self, timeout_seconds: float) -> bool:
        """Of one that is to end: whether it did in time."""


class SpawnedProcess:
    """A fresh process, leashed to this one. `command` gets the number of the file descriptor to write
    messages to and returns the arguments."""

    def __init__(self, command: Callable[[int], list[str]], handover: Handover) -> None:
        self._process = subprocess.Popen(
            leashed(command(handover.messages)),
            stdin=subprocess.DEVNULL,
            stdout=handover.log,
            stderr=subprocess.STDOUT,
            pass_fds=(handover.messages,),
            start_new_session=True,
            env=handover.environment,
        )
        self.pid = self._process.pid
        self.base: BaseOf = "fresh"

    def exit_code(self) -> int | None:
        return self._process.poll()

    def send(self, number: signal.Signals) -> None:
        signal_group(self.pid, number)

    def wait(self, timeout_seconds: float) -> bool:
        try:
            self._process.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            return False
        return True


class ChildProcess:
    """A context manager: when its block ends, however it ends, nobody is left in the process group.
    `environment` replaces what is passed on of our own."""

    def __init__(
        self,
        start: Callable[[Handover], GroupLeader],
        *,
        log_path: Path,
        also_passed: frozenset[str] = frozenset(),
        environment: dict[str, str] | None = None,
    ) -> None:
        self.log_path = log_path
        self._messages: queue.SimpleQueue[AnyMessage | None] = queue.SimpleQueue()
        environment = environment or child_environment(dict(os.environ), also_passed)
        reading, writing = os.pipe()
        try:
            with log_path.open("ab") as log_file:
                self._process = start(Handover(writing, log_file.fileno(), environment))
        except BaseException:
            os.close(reading)
            raise
        finally:
            os.close(writing)
        self._reader = threading.Thread(
            target=self._read, args=(reading,), name=f"child-{self.pid}", daemon=True
        )
        self._reader.start()

    @property
    def pid(self) -> int:
        """Of the leader of the group that works for us now; it may change until the child speaks."""
        return self._process.pid

    @property
    def base(self) -> BaseOf:
        return self._process.base

    def _read(self, descriptor: int) -> None:
        with os.fdopen(descriptor, "rb") as pipe:
            for line in pipe:
                try:
                    self._messages.put(decode(line))
                except msgspec.DecodeError as error:
                    # Only a child that died in the middle of a line does this.
                    log.warning("unreadable message from child", pid=self.pid, error=str(error))
        self._messages.put(None)

    def message(self, timeout_seconds: float) -> AnyMessage | None:
        """The next message; None when the child has closed its end, now and in every later call.
        Raises TimeoutError when none came in time."""
        try:
            message = self._messages.get(timeout=timeout_seconds)
        except queue.Empty:
            raise TimeoutError from None
        if message is None:
            self._messages.put(None)
        return message

    def exit_code(self) -> int | None:
        """None while it runs; negative is the number of the signal that ended it."""
        return self._process.exit_code()

    def terminate(self) -> None:
        self._process.send(signal.SIGTERM)

    def kill(self) -> None:
        self._process.send(signal.SIGKILL)

    def gone(self) -> bool:
        """End whatever is left of the group; True once the process and its group are no more."""
        kill_group(self.pid)
        return self._process.wait(10) and kill_group(self.pid)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.gone():
            # A process in uninterruptible sleep (a stuck driver or disk) outlives even SIGKILL.
            log.error("child process cannot be ended", pid=self.pid)
        self._reader.join(timeout=10)
