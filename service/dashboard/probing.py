"""Asking a part of the service how it is, without waiting longer than a page may take."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Generic, TypeVar

import structlog

T = TypeVar("T")
WAIT_SECONDS = 3.0

log: structlog.stdlib.BoundLogger = structlog.get_logger()


@dataclass(frozen=True)
class Probed(Generic[T]):
    """`value` None: it failed, or did not answer in time; `problem` says which, in words without secrets."""

    value: T | None
    milliseconds: float | None
    problem: str | None


class Probes:
    """One question a name at a time (the part's, after a space which one): where a store hangs, looking again
    must not pile up threads."""

    def __init__(self, *, wait_seconds: float = WAIT_SECONDS) -> None:
        self._wait_seconds = wait_seconds
        self._lock = threading.Lock()
        self._asked: dict[str, Future[tuple[object, float]]] = {}

    def start(self, name: str, ask: Callable[[], T]) -> Callable[[], Probed[T]]:
        """Begins to ask; what is returned waits for the answer, so that several are asked at once."""
        with self._lock:
            asked = self._asked.get(name)
            if asked is None or asked.done():
                asked = self._asked[name] = Future()
                threading.Thread(
                    target=_run, args=(asked, ask), name=f"probe {name.partition(' ')[0]}", daemon=True
                ).start()
        until = time.monotonic() + self._wait_seconds

        def wait() -> Probed[T]:
            try:
                value, milliseconds = asked.result(timeout=max(0.0, until - time.monotonic()))
            except TimeoutError:
                return Probed(None, None, f"no answer within {self._wait_seconds:g} seconds")
            except Exception as error:
                # The type alone: the words may hold a URL, and with it a password.
                log.warning("probe_failed", part=name.partition(" ")[0], error=type(error).__name__)
                return Probed(None, None, f"fails ({type(error).__name__})")
            return Probed(value, milliseconds, None)  # type: ignore[arg-type]

        return wait


def _run(asked: Future[tuple[object, float]], ask: Callable[[], object]) -> None:
    started = time.perf_counter()
    try:
        value = ask()
    except BaseException as error:
        asked.set_exception(error)
    else:
        asked.set_result((value, 1000 * (time.perf_counter() - started)))
