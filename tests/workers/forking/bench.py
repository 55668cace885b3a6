"""Children of a scripted fork server, and fresh ones that do the same."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from workers.child import ChildProcess, GroupLeader, Handover, SpawnedProcess, child_environment
from workers.forking.channel import Request
from workers.forking.resident import ResidentBase
from workers.messages import Noted

SCRIPT = [sys.executable, "-m", "tests.workers.forking.scripted"]


class Bench:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.base = folder / "base"
        self.new_base(self.base)
        self.residents: list[ResidentBase] = []

    def new_base(self, folder: Path) -> None:
        folder.mkdir()
        (folder / "config.json").write_text("{}")

    def resident(self, how: str = "fine", *, idle_seconds: float = 60.0) -> ResidentBase:
        def command(descriptor: int) -> list[str]:
            return [*SCRIPT, str(descriptor), str(idle_seconds), how]

        environment = {**child_environment(dict(os.environ)), "PYTHONPATH": os.getcwd()}
        resident = ResidentBase(command, lambda: environment, log_path=self.folder / "resident.log")
        self.residents.append(resident)
        return resident

    def child(self, resident: ResidentBase | None, *, base: Path | None = None, **order: Any) -> ChildProcess:
        """None: a fresh one."""
        path = self.folder / "order.json"
        path.write_text(json.dumps(order))

        def fresh(handover: Handover) -> GroupLeader:
            return SpawnedProcess(lambda fd: [*SCRIPT, "fresh", str(path), str(fd)], handover)

        def start(handover: Handover) -> GroupLeader:
            if resident is None:
                return fresh(handover)
            request = Request(order_path=str(path), base_path=str(base or self.base))
            return resident.fork(request, handover, fresh)

        return ChildProcess(start, log_path=self.folder / "child.log", also_passed=frozenset({"HUNTER"}))

    def loads(self) -> list[int]:
        """The servers that prepared something."""
        file = self.folder / "loads"
        return [int(line) for line in file.read_text().split()] if file.exists() else []


def wait_until(condition: Callable[[], Any], timeout_seconds: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        assert time.monotonic() < deadline, f"nothing happened in {timeout_seconds} s"
        time.sleep(0.01)


def ended(child: ChildProcess) -> int:
    wait_until(lambda: child.exit_code() is not None)
    assert child.gone()
    exit_code = child.exit_code()
    assert exit_code is not None
    return exit_code


def said(child: ChildProcess) -> dict[str, Any]:
    """Its first words, while the supervisor looks after it as it does."""
    for _ in range(1000):
        child.exit_code()
        try:
            message = child.message(0.02)
        except TimeoutError:
            continue
        assert isinstance(message, Noted), message
        words: dict[str, Any] = json.loads(message.text)
        return words
    raise AssertionError("it says nothing")
