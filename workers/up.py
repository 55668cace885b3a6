"""`autoclave up`: the embedded service in the foreground, until Ctrl-C, SIGTERM or SIGHUP."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from service import log as logging_setup
from workers.data_dir import DataDir
from workers.embedded import EmbeddedService
from workers.shipped_base import SHIPPED_BASE_ID

_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interruption:
    """The first signal asks to stop; a second one says that there is no time for manners."""

    def __init__(self) -> None:
        self.asked = threading.Event()
        self.again = threading.Event()

    def __call__(self, _number: int, _frame: FrameType | None) -> None:
        (self.again if self.asked.is_set() else self.asked).set()


@contextmanager
def stop_signals() -> Iterator[Interruption]:
    """While the block runs, the signals that mean "stop" set events instead of ending the process."""
    interruption = Interruption()
    before = {number: signal.signal(number, interruption) for number in _STOP_SIGNALS}
    try:
        yield interruption
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_until_stopped(data_dir: Path, *, host: str, port: int, allow_public: bool = False) -> int:
    """The exit status. Raises StartError if it cannot start; nothing runs then."""
    logging_setup.configure(json=False)
    with stop_signals() as interruption:
        service = EmbeddedService(
            DataDir(data_dir),
            host=host,
            port=port,
            allow_public=allow_public,
            give_up=interruption.asked,
            hurry=interruption.again,
        )
        with service:
            print(_greeting(service), flush=True)
            interruption.asked.wait()
            print("\nstopping", file=sys.stderr, flush=True)
    return 0


def _greeting(service: EmbeddedService) -> str:
    folder = service.data_dir.path
    lines = [
        f"Autoclave runs on {service.url}/v1",
        f"  pages       {service.url}",
        f"  base model  {SHIPPED_BASE_ID}",
    ]
    if service.first_key is not None:
        lines.append(f"  API key     {service.first_key}   (shown only now)")
    else:
        lines.append(f"  API key     as before; a new one: autoclave admin create-key --data-dir {folder}")
    if service.first_operator_key is not None:
        lines.append(f"  operator    {service.first_operator_key}   (shown only now)")
    lines += [f"  data, logs  {folder}", "Ctrl-C stops it."]
    return "\n".join(lines)
