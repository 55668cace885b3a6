"""The job's part of sending figures to Weights & Biases: it hands them on and never waits for them.

Listens to what the job says to its supervisor; a process of its own does the rest (`workers.wandb_process`).
Whatever goes wrong there becomes an event of level warn, and the job goes on.
"""

from __future__ import annotations

import json
import logging
import queue
import subprocess
import sys
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from workers.leash import leashed
from workers.messages import AnyMessage, Failed, Published, StageFinished, StepsMeasured
from workers.order import Order, WandbOrder

logger = logging.getLogger(__name__)

INIT_TIMEOUT_SECONDS = 30.0
FINISH_SECONDS = 5.0
"""How long the end of a job may wait for what was not sent yet."""
_MAX_WAITING = 10_000
"""Messages; of a process that does not read, the rest is dropped."""

Warn = Callable[[str], None]


class Tracking:
    """A context manager around one attempt. `warn` writes an event for the job's owner."""

    def __init__(
        self,
        order: Order,
        warn: Warn,
        *,
        command: list[str] | None = None,
        finish_seconds: float = FINISH_SECONDS,
    ) -> None:
        self._warn = warn
        self._finish_seconds = finish_seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._exit_code = 1
        self._has_warned = False
        if order.wandb is None:
            return
        if order.wandb.mode == "disabled":
            warn("Nothing is sent to Weights & Biases: this server is not set up for it any more")
            return
        self._lines: queue.Queue[bytes | None] = queue.Queue(_MAX_WAITING)
        self._said: queue.SimpleQueue[str] = queue.SimpleQueue()
        try:
            self._process = subprocess.Popen(
                leashed(command or [sys.executable, "-m", "workers.wandb_process"]),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
        except OSError:
            logger.exception("the process for Weights & Biases cannot be started")
            warn(_words("its process cannot be started"))
            return
        self._threads = [
            threading.Thread(target=target, daemon=True) for target in (self._write, self._listen)
        ]
        for thread in self._threads:
            thread.start()
        self._send(_opening(order, order.wandb, finish_seconds))

    def hear(self, message: AnyMessage) -> None:
        """What the job has just said to its supervisor."""
        if self._process is None:
            return
        match message:
            case StepsMeasured():
                self._send({"points": _points(message)})
            case StageFinished(safety_report=report) | Failed(safety_report=report) if report is not None:
                self._send({"summary": _summary(report)})
            case Published():
                self._exit_code = 0
            case _:
                return
        self._complain()

    def _send(self, message: dict[str, Any]) -> None:
        try:
            self._lines.put_nowait(json.dumps(message).encode() + b"\n")
        except queue.Full:
            logger.warning("figures for Weights & Biases are dropped")

    def _write(self) -> None:
        """In a thread: the other process may not read for a while."""
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            with self._process.stdin as pipe:
                while (line := self._lines.get()) is not None:
                    pipe.write(line)
                    pipe.flush()
        except OSError:  # it has ended; it said why
            return

    def _listen(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        with self._process.stdout as pipe:
            for line in pipe:
                self._said.put(line.decode(errors="replace").strip())

    def _complain(self) -> None:
        while not self._said.empty():
            self._has_warned = True
            self._warn(_words(self._said.get()))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is None:
            return
        self._send({"exit_code": self._exit_code})
        try:
            self._lines.put_nowait(None)
            self._process.wait(self._finish_seconds)
        except (queue.Full, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
            self._said.put("not all figures were sent in time")
        for thread in self._threads:
            thread.join(1.0)
        if self._process.returncode > 0 and not self._has_warned and self._said.empty():
            self._said.put("its process ended early")
        try:
            self._complain()
        except OSError:
            return  # nobody is left to hear it


def _words(reason: str) -> str:
    return f"Weights & Biases: {reason}. The job goes on without it"


def _opening(order: Order, wandb: WandbOrder, finish_seconds: float) -> dict[str, Any]:
    spec = order.job_spec()
    train = spec.train
    return {
        "job_id": order.job_id,
        "mode": wandb.mode,
        "folder": wandb.folder,
        "runs": [
            {"project": run.project, "name": run.name, "entity": run.entity, "tags": run.tags}
            for run in wandb.runs
        ],
        "config": {
            "job_id": order.job_id,
            "base": order.base.id,
            "base_revision": order.base.revision,
            "base_sha256": order.base.sha256,
            "lora": order.spec["lora"],
            "defence": spec.defence.model_dump(mode="json"),
            "n_epochs": train.n_epochs,
            "batch_size": train.batch_size,
            "learning_rate": train.learning_rate,
            "seed": train.seed,
        },
        "init_timeout_seconds": INIT_TIMEOUT_SECONDS,
        "finish_timeout_seconds": finish_seconds,
    }


def _points(steps: StepsMeasured) -> list[dict[str, Any]]:
    rows = zip(steps.train_loss, steps.learning_rate, steps.tokens_per_second, strict=True)
    return [
        {
            "step": steps.first_step + i,
            "train/loss": loss,
            "train/learning_rate": rate,
            "train/tokens_per_second": speed,
        }
        for i, (loss, rate, speed) in enumerate(rows)
    ]


def _summary(report: dict[str, Any]) -> dict[str, Any]:
    """`safety/<score>/<base, before or after>`, as a job shows them; what was not measured is left out."""
    flat: dict[str, Any] = {}
    for name, value in report.get("summary", {}).items():
        parts = value.items() if isinstance(value, dict) else [(None, value)]
        for who, figure in parts:
            if figure is not None:
                flat[f"safety/{name}" if who is None else f"safety/{name}/{who}"] = figure
    return flat
