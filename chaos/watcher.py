"""Hears of every change of a job's state as it is committed, so that a fault can hit a stage."""

from __future__ import annotations

import threading
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

import psycopg

from chaos.journal import CHANNEL
from chaos.servers import Postgres

TERMINAL = frozenset({"succeeded", "failed", "cancelled"})


@dataclass(frozen=True)
class Sight:
    """What a job became, at `at` (monotonic seconds)."""

    job_id: str
    status: str
    stage: str
    fencing: int
    owner: str
    project_id: str
    at: float

    @property
    def worker_pid(self) -> int | None:
        """Of the worker that runs it: the owner is host:pid:random."""
        return int(self.owner.split(":")[1]) if self.owner.count(":") == 2 else None


class Watcher:
    """A context manager with a thread. While the database is away it knows what it knew."""

    def __init__(self, postgres: Postgres) -> None:
        self._postgres = postgres
        self._changed = threading.Condition()
        self._jobs: dict[str, Sight] = {}
        self._num_seen = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="watcher", daemon=True)

    def jobs(self) -> dict[str, Sight]:
        with self._changed:
            return dict(self._jobs)

    def counts(self) -> Counter[str]:
        return Counter(sight.status for sight in self.jobs().values())

    def num_open(self) -> int:
        return sum(sight.status not in TERMINAL for sight in self.jobs().values())

    def wait_for(
        self,
        status: str | None,
        stage: str | None = None,
        *,
        job_id: str | None = None,
        newer_than: float = 0.0,
        timeout_seconds: float,
    ) -> Sight | None:
        """A job that is, or comes to be, in that state. `newer_than`: it came there later (monotonic)."""

        def find() -> Sight | None:
            fitting = [
                sight
                for sight in self._jobs.values()
                if status in (None, sight.status)
                and stage in (None, sight.stage)
                and job_id in (None, sight.job_id)
                and sight.at > newer_than
            ]
            return max(fitting, key=lambda sight: sight.at, default=None)

        deadline = time.monotonic() + timeout_seconds
        with self._changed:
            while (found := find()) is None and not self._over.is_set():
                if not self._changed.wait(max(0.0, deadline - time.monotonic())):
                    return None
            return found

    def _loop(self) -> None:
        while not self._over.is_set():
            try:
                with self._postgres.connect() as connection:
                    connection.execute(f"LISTEN {CHANNEL}")
                    self._read_all(connection)
                    while not self._over.is_set():
                        for notice in connection.notifies(timeout=0.5, stop_after=1):
                            self._note(notice.payload.split(" "))
            except psycopg.Error:
                self._over.wait(0.2)

    def _read_all(self, connection: psycopg.Connection[Any]) -> None:
        rows = connection.execute(
            "SELECT id, status, stage, fencing_number, coalesce(lease_owner, '-'), project_id FROM jobs"
        ).fetchall()
        for row in rows:
            self._note([str(value) for value in row], again=True)

    def _note(self, words: list[str], *, again: bool = False) -> None:
        job_id, status, stage, fencing, owner, project_id = words
        sight = Sight(job_id, status, stage, int(fencing), owner, project_id, time.monotonic())
        with self._changed:
            known = self._jobs.get(job_id)
            if (
                again
                and known is not None
                and (known.status, known.stage, known.fencing)
                == (
                    status,
                    stage,
                    int(fencing),
                )
            ):
                return
            self._jobs[job_id] = sight
            self._changed.notify_all()

    def __enter__(self) -> Watcher:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        with self._changed:
            self._changed.notify_all()
        self._thread.join(10)
