"""Children that behave in one particular way where `workers.bases.runner` stands:
`python -m tests.workers.bases.children BEHAVIOUR ORDER DESCRIPTOR`."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workers.messages import AnyMessage, BasePrepared, Failed, Noted, ProgressMade, encode

if TYPE_CHECKING:  # children start faster without it
    from workers.bases.taking import ChildCommand

SHA256 = "5" * 64
MEASURED = {"floor": {"harmful_score": 3.0}, "generation": {"tokens_per_second": 9.0}}


def command(behaviour: str) -> ChildCommand:
    return lambda order, descriptor: [
        sys.executable, "-m", "tests.workers.bases.children", behaviour, str(order), str(descriptor)
    ]  # fmt: skip


class Child:
    def __init__(self, order: dict[str, Any], descriptor: int) -> None:
        self.order = order
        self._pipe = os.fdopen(descriptor, "wb", buffering=0)

    def say(self, message: AnyMessage) -> None:
        self._pipe.write(encode(message))


def happy(child: Child) -> None:
    child.say(Noted(text="loading"))
    child.say(ProgressMade(step=1, total_steps=2))
    child.say(
        BasePrepared(
            folder="/models/x",
            revision="r",
            sha256=SHA256,
            alignment_method="sft",
            measurements=MEASURED,
            safety_profile=child.order["profile"],
        )
    )


def refuses(child: Child) -> None:
    child.say(Failed(code="invalid_model", message="it has no weights"))


def is_killed(child: Child) -> None:
    child.say(Noted(text="loading"))
    os.kill(os.getpid(), signal.SIGKILL)


def crashes(child: Child) -> None:
    print("Traceback: something broke", flush=True)
    sys.exit(1)


def needs_memory(child: Child) -> None:
    sys.exit(42)


def stubborn(child: Child) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    (Path(child.order["scratch"]).parent / "pid").write_text(str(os.getpid()))
    child.say(Noted(text="measuring"))
    child.say(ProgressMade(step=1, total_steps=2, seconds_remaining=9.0))
    time.sleep(600)


if __name__ == "__main__":
    behaviour, order_path, number = sys.argv[1:]
    globals()[behaviour](Child(json.loads(Path(order_path).read_text()), int(number)))
