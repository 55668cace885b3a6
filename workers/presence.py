"""A worker shows that it is there: a row in `workers`, written anew at every heartbeat, also when idle.

A thread of its own, so that a job that blocks its supervisor does not look like a dead machine; that the job
itself stands still is seen by the job's own heartbeat. A database that does not answer is waited for.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

import structlog

from service.db import Database
from service.fleet import presence
from service.fleet.presence import Sighting
from service.fleet.states import WorkerState
from service.scheduling.workers import Kind
from workers.device import Device

log = structlog.get_logger(__name__)


class Presence:
    """A context manager: the worker is there while the block runs, and gone afterwards."""

    def __init__(
        self,
        database: Database,
        device: Device,
        *,
        worker_id: str,
        host: str,
        pid: int,
        interval_seconds: float,
        kind: Kind,
        num_processes: int,
        shutdown: threading.Event,
    ) -> None:
        self._database = database
        self._device = device
        self._worker_id = worker_id
        self._host = host
        self._pid = pid
        self._interval_seconds = interval_seconds
        self._kind = kind
        self._num_processes = num_processes
        self._shutdown = shutdown
        self._started_at = time.time()
        self._job_id: str | None = None
        self._child_pid: int | None = None
        self._wake = threading.Event()
        self._over = threading.Event()
        self._failing = False
        self._thread = threading.Thread(target=self._loop, name="presence", daemon=True)

    @contextmanager
    def working_on(self, job_id: str) -> Iterator[None]:
        self._job_id = job_id
        self._wake.set()
        try:
            yield
        finally:
            self._job_id = self._child_pid = None
            self._wake.set()

    def child_started(self, pid: int) -> None:
        """`pid` leads the process group of the job in hand."""
        self._child_pid = pid

    def _loop(self) -> None:
        while not self._over.is_set():
            self._wake.clear()
            self.beat()
            self._wake.wait(self._interval_seconds)

    def beat(self) -> None:
        """Write the row once."""
        try:
            reading = self._device.reading(self._child_pid)
            job_id = self._job_id
            state = WorkerState.IDLE if job_id is None else WorkerState.BUSY
            sighting = Sighting(
                id=self._worker_id,
                host=self._host,
                pid=self._pid,
                started_at=self._started_at,
                heartbeat_at=self._database.now(),
                state=WorkerState.STOPPING if self._shutdown.is_set() else state,
                job_id=job_id,
                device_kind=reading.kind,
                device_name=reading.name[:255],
                memory_used_bytes=reading.memory_used_bytes,
                memory_total_bytes=reading.memory_total_bytes,
                worker_class=self._kind.worker_class,
                job_memory_bytes=_smallest(self._kind.memory_bytes or None, reading.memory_each_bytes),
                job_processes=self._num_processes,
            )
            with self._database.transaction() as session:
                presence.see(session, sighting)
        except Exception as error:
            # Nobody sees us meanwhile; jobs are not touched by that.
            if not self._failing:
                log.warning("this worker cannot show itself", error=str(error))
            self._failing = True
        else:
            if self._failing:
                log.info("this worker shows itself again")
            self._failing = False

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._wake.set()
        self._thread.join(timeout=60)
        try:
            with self._database.transaction() as session:
                presence.leave(session, self._worker_id, now=self._database.now())
        except Exception as failure:
            log.warning("the worker's row says that it is still there", error=str(failure))


def _smallest(declared: int | None, measured: int | None) -> int | None:
    """Bytes: a job may not use more than was declared, and cannot use more than there are."""
    return min((size for size in (declared, measured) if size is not None), default=None)
