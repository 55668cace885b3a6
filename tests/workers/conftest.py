"""A queued job with everything it refers to, and a supervisor over scripted children."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from service.db import Database
from service.models import Job, JobEvent
from service.settings import Settings
from service.storage import Storage
from tests.builders import Tenant, get_job, make_queued_job
from tests.workers import children
from workers.job_processes import runner_command
from workers.supervisor import Supervisor

QueuedJob = Callable[..., str]


@pytest.fixture
def database_url(sqlite_url: str) -> str:
    """Processes behave alike over both databases; modules about what is written override this again."""
    return sqlite_url


@pytest.fixture
def queued_job(database: Database, tenant: Tenant) -> QueuedJob:
    """Makes a job that waits in the queue and returns its id; keyword arguments override columns."""

    def make(**columns: Any) -> str:
        with database.transaction() as session:
            return make_queued_job(session, tenant.project_id, **columns).id

    return make


class Bench:
    """A supervisor over one scripted child, and the database it writes to."""

    def __init__(self, database: Database, storage: Storage, settings: Settings) -> None:
        self.database = database
        self.storage = storage
        self.settings = settings.model_copy(
            update={
                "lease_ttl_seconds": 20.0,
                "heartbeat_seconds": 0.1,
                "max_attempts": 2,
                "cancel_grace_seconds": 0.3,
                "drain_grace_seconds": 0.3,
                "terminate_grace_seconds": 0.3,
            }
        )
        self.work_dir = Path(settings.work_dir)
        self.shutdown = threading.Event()

    def supervisor(self, behaviour: str | None, **settings: Any) -> Supervisor:
        """None: with the real child."""
        return Supervisor(
            self.database,
            self.storage,
            self.settings.model_copy(update=settings),
            owner="test",
            work_dir=self.work_dir,
            shutdown=self.shutdown,
            child_command=runner_command if behaviour is None else children.command(behaviour),
        )

    def run(self, behaviour: str, job_id: str, **settings: Any) -> Job:
        """The job whose turn it is, which is this one where there is no other; what this one is then."""
        self.supervisor(behaviour, **settings).run_next()
        return self.job(job_id)

    def run_beside(self, behaviour: str, job_id: str, **settings: Any) -> threading.Thread:
        """Run in a thread; returns once the child shows progress."""
        thread = threading.Thread(target=self.supervisor(behaviour, **settings).run_next)
        thread.start()
        self.wait_until(lambda: self.job(job_id).progress is not None)
        return thread

    def job(self, job_id: str) -> Job:
        return get_job(self.database, job_id)

    def events(self, job_id: str) -> list[JobEvent]:
        with self.database.snapshot() as session:
            query = select(JobEvent).where(JobEvent.job_id == job_id).order_by(JobEvent.sequence)
            return list(session.scalars(query))

    def change(self, job_id: str, **columns: Any) -> None:
        with self.database.transaction() as session:
            job = session.get_one(Job, job_id)
            for name, value in columns.items():
                setattr(job, name, value)

    def pids(self) -> list[int]:
        """What the child wrote: its own process id, or also those of its children."""
        return [int(number) for number in (self.work_dir / "pids").read_text().split()]

    def wait_until(self, condition: Callable[[], bool], timeout_seconds: float = 20.0) -> None:
        deadline = time.monotonic() + timeout_seconds
        while not condition():
            assert time.monotonic() < deadline, f"nothing happened in {timeout_seconds} s"
            time.sleep(0.02)


@pytest.fixture
def bench(database: Database, storage: Storage, settings: Settings) -> Bench:
    return Bench(database, storage, settings)
