"""Children that behave in one particular way: `python -m tests.workers.children BEHAVIOUR ORDER DESCRIPTOR`.

They stand where `workers.runner` stands, so that supervision is tested with real processes, pipes and
signals, and without minutes of training.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from service.adapters.package_file import PackageFile
from service.jobs.states import STAGES, Stage
from service.storage import adapter_key, private_prefix, storage_from_url
from workers.messages import (
    AdapterKept,
    AnyMessage,
    Checkpointed,
    Failed,
    MemoryEstimated,
    MetricsMeasured,
    Noted,
    ProgressMade,
    Published,
    StageFinished,
    StepsMeasured,
    encode,
)
from workers.order import (
    JUDGE_AWAY_EXIT,
    OUT_OF_MEMORY_EXIT,
    STORAGE_DOWN_EXIT,
    Order,
    is_pause,
    log_fields,
    read_order,
)
from workers.tracking import Tracking

if TYPE_CHECKING:
    from workers.supervisor import ChildCommand


def command(behaviour: str) -> ChildCommand:
    return lambda order, descriptor: [
        sys.executable, "-m", "tests.workers.children", behaviour, str(order), str(descriptor)
    ]  # fmt: skip


class Child:
    def __init__(self, order: Order, descriptor: int) -> None:
        self.order = order
        self._pipe = os.fdopen(descriptor, "wb", buffering=0)
        self._storage = storage_from_url(order.storage_url)

    def say(self, message: AnyMessage) -> None:
        self._pipe.write(encode(message))

    def say_raw(self, line: bytes) -> None:
        self._pipe.write(line)

    def finish_stages(self, until: Stage | None = None) -> None:
        """Finish every stage from where the order begins, up to but not including `until`."""
        for stage in STAGES[STAGES.index(self.order.stage) :]:
            if stage in (until, Stage.PUBLISH):
                return
            self._storage.put(f"{private_prefix(self.order.job_id)}/{stage.value}", b"weights")
            output = {"by": self.order.fencing_number} | (
                {"trained_tokens": 1234} if stage is Stage.TRAIN else {}
            )
            self.say(StageFinished(stage=stage, output=output))

    def publish(self) -> None:
        key = adapter_key(self.order.job_id, self.order.fencing_number)
        self._storage.put(key, b"tar")
        self.say(
            Published(
                storage_key=key,
                num_bytes=3,
                sha256="0" * 64,
                safety_report={"alpha": 0.1},
                files=[PackageFile(name="README.md", num_bytes=2, sha256="1" * 64, offset=1)],
                # Tells that the path came here; a real child puts its public half in its place.
                signing_public_key=self.order.signing_key_file,
            )
        )

    def wait_for_stop_flag(self) -> None:
        while not self.order.stop_flag.exists():
            time.sleep(0.01)

    def write_pids(self, *others: int) -> None:
        """Beside the scratch folder, which is removed: `<work_dir>/pids`."""
        file = Path(self.order.scratch).parent / "pids"
        file.write_text(" ".join(map(str, (os.getpid(), *others))))


def happy(child: Child) -> None:
    child.say(ProgressMade(step=1, total_steps=2, loss=0.5))
    child.say(MetricsMeasured(step=1, total_steps=2, train_loss=0.5))
    child.say(
        StepsMeasured(
            first_step=1, train_loss=[0.5, 0.25], learning_rate=[1.0, 0.5], tokens_per_second=[9.0, None]
        )
    )
    child.say(Noted(text="Reading 12 conversations"))
    prefix = f"{private_prefix(child.order.job_id)}/checkpoint-1"
    child.say(Checkpointed(prefix=prefix, step=1))
    child.finish_stages()
    child.publish()


def keeps_checkpoints(child: Child) -> None:
    """Four epochs, then the gate is missed."""
    child.finish_stages(Stage.TRAIN)
    for step in (2, 4, 6, 8):
        prefix = f"{private_prefix(child.order.job_id)}/{child.order.fencing_number}/train-kept-{step}"
        child._storage.put(f"{prefix}/adapter_model.safetensors", b"weights")
        kept = AdapterKept(
            prefix=prefix,
            step=step,
            adapter_sha256="a" * 64,
            metrics={"step": step, "train_loss": 1 / step},
            figures={"steps": step},
        )
        child.say(kept)
    output = {"prefix": prefix, "adapter_sha256": "a" * 64, "trained_tokens": 5}
    child.say(StageFinished(stage=Stage.TRAIN, output=output))
    child.say(Failed(code="safety_gate_failed", message="no", safety_report={"alpha": None}))


def _track(child: Child) -> Tracking:
    return Tracking(child.order, lambda text: child.say(Noted(text=text, level="warn")), finish_seconds=60)


def sends_figures(child: Child) -> None:
    """Two attempts' worth of points, a report, and a secret that must not leave."""
    with _track(child) as tracking:
        child.finish_stages(Stage.EVALUATE)
        for first, losses in ((1, [3.0, 2.0]), (3, [1.5])):
            steps = StepsMeasured(
                first_step=first,
                train_loss=list(losses),
                learning_rate=[0.1] * len(losses),
                tokens_per_second=[None] * len(losses),
            )
            child.say(steps)
            tracking.hear(steps)
        summary = {
            "result": "passed",
            "mu": None,
            "harmful_score": {"base": None, "before": 80.0, "after": 4.0},
        }
        report = {"summary": summary, "frontier": [{"secret": "zap"}]}
        finished = StageFinished(stage=Stage.EVALUATE, output={}, safety_report=report)
        child.say(finished)
        tracking.hear(finished)
        published = Published(storage_key="x", num_bytes=1, sha256="0" * 64, safety_report=report)
        tracking.hear(published)
    child.publish()


def sends_figures_for_ever(child: Child) -> None:
    """Ignores every polite word, and has what Weights & Biases started beside it."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with _track(child):
        child.write_pids()
        child.say(ProgressMade(step=1, total_steps=2))
        time.sleep(600)


def scored(child: Child) -> None:
    """Publishes with the scores of a real report's summary."""
    child.finish_stages()
    key = adapter_key(child.order.job_id, child.order.fencing_number)
    child._storage.put(key, b"tar")
    scores = {"base": None, "before": 80.0, "after": 4.0}
    report = {"summary": {"result": "passed", "harmful_score": scores}}
    child.say(Published(storage_key=key, num_bytes=3, sha256="0" * 64, safety_report=report))


def logs(child: Child) -> None:
    """As the real child does, and as a library in it might; then it fails."""
    from service import log  # the others start faster without it

    log.configure(json=True, fields=log_fields(child.order))
    logger = logging.getLogger("workers.tests")
    logger.info("reading %d lines", 12)
    logging.getLogger("some.library").warning("someone else's words")
    threading.Thread(target=logger.warning, args=("watch out",)).start()
    try:
        _ = 1 / 0
    except ZeroDivisionError:
        logger.exception("it broke")
    child.say(Failed(code="internal_error", message="no"))


def garbage(child: Child) -> None:
    child.say_raw(b'{"type": "progress", "step"\n')
    happy(child)


def refuses(child: Child) -> None:
    child.finish_stages(Stage.SANITIZE)
    child.say(
        Failed(code="safety_gate_failed", message="no strength met the gate", safety_report={"alpha": None})
    )


def crashes(child: Child) -> None:
    child.finish_stages(Stage.TRAIN)
    print("Traceback: something broke", flush=True)
    sys.exit(1)


def judge_is_away(child: Child) -> None:
    child.finish_stages(Stage.SANITIZE)
    sys.exit(JUDGE_AWAY_EXIT)


def is_killed(child: Child) -> None:
    child.finish_stages(Stage.SANITIZE)
    os.kill(os.getpid(), signal.SIGKILL)


def needs_memory(child: Child) -> None:
    if child.order.micro_batch_divisor == 1:
        child.finish_stages(Stage.TRAIN)
        sys.exit(OUT_OF_MEMORY_EXIT)
    assert child.order.stage is Stage.TRAIN, child.order.stage
    happy(child)


def needs_too_much_memory(child: Child) -> None:
    sys.exit(OUT_OF_MEMORY_EXIT)


def finds_no_storage(child: Child) -> None:
    child.finish_stages(Stage.TRAIN)
    sys.exit(STORAGE_DOWN_EXIT)


def is_large(child: Child) -> None:
    child.say(MemoryEstimated(num_bytes=3 * 2**30))
    child.wait_for_stop_flag()
    time.sleep(600)


def cooperates(child: Child) -> None:
    child.write_pids()
    child.say(ProgressMade(step=1, total_steps=2))
    child.wait_for_stop_flag()


def pauses(child: Child) -> None:
    """Saves a checkpoint when it is to pause; goes on from one to the end."""
    if child.order.checkpoint is not None:
        assert child.order.checkpoint["step"] == 7, child.order.checkpoint
        happy(child)
        return
    child.write_pids()
    child.finish_stages(Stage.TRAIN)
    child.say(ProgressMade(step=1, total_steps=2))
    child.wait_for_stop_flag()
    assert is_pause(child.order.stop_flag)
    child.say(Checkpointed(prefix=private_prefix(child.order.job_id), step=7))


def ignores_a_pause(child: Child) -> None:
    """But stops for a plain stop."""
    child.write_pids()
    child.say(ProgressMade(step=1, total_steps=2))
    while not child.order.stop_flag.exists() or is_pause(child.order.stop_flag):
        time.sleep(0.01)


def saves_two_checkpoints(child: Child) -> None:
    for step in (1, 2):
        prefix = f"{private_prefix(child.order.job_id)}/{child.order.fencing_number}/train-checkpoint-{step}"
        child._storage.put(f"{prefix}/state.json", b"{}")
        child.say(Checkpointed(prefix=prefix, step=step))
    child.say(ProgressMade(step=1, total_steps=2))
    child.wait_for_stop_flag()


def stubborn(child: Child) -> None:
    """Ignores the flag and SIGTERM, and has a child of its own that does too."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sleep = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
    grandchild = subprocess.Popen([sys.executable, "-c", sleep])
    child.write_pids(grandchild.pid)
    child.say(ProgressMade(step=1, total_steps=2))
    time.sleep(600)


def leaves_a_straggler(child: Child) -> None:
    """Ends well, but a process of its group lives on and holds the pipe open."""
    descriptor = child._pipe.fileno()
    straggler = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(600)"], pass_fds=(descriptor,)
    )
    child.write_pids(straggler.pid)
    happy(child)


def hangs_after_publishing(child: Child) -> None:
    happy(child)
    time.sleep(600)


if __name__ == "__main__":
    behaviour, order_path, number = sys.argv[1:]
    globals()[behaviour](Child(read_order(Path(order_path)), int(number)))
