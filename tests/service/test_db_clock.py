"""One clock for leases: what a machine's own clock does is nobody's lost job."""

from __future__ import annotations

import time

import pytest
from sqlalchemy.exc import OperationalError

from service.db import Database
from service.db_clock import REFRESH_SECONDS, RETRY_SECONDS, DatabaseClock
from service.jobs import lease
from service.models import Job
from service.storage import Storage
from tests.builders import make_queued_job, make_tenant
from workers.maintenance import Maintenance


class Server:
    """Says what time it is, after a journey of as long each way."""

    def __init__(self) -> None:
        self.ahead_seconds = 1000.0
        self.ticks = 50.0
        self.travel_seconds = 0.0
        self.is_down = False
        self.num_asked = 0

    def monotonic(self) -> float:
        return self.ticks

    def read(self) -> float:
        self.num_asked += 1
        if self.is_down:
            raise OperationalError("SELECT", {}, Exception("gone"))
        self.ticks += self.travel_seconds
        said = self.ticks + self.ahead_seconds
        self.ticks += self.travel_seconds
        return said


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def clock(server: Server) -> DatabaseClock:
    return DatabaseClock(server.read, monotonic=server.monotonic)


def test_it_is_asked_once_in_a_while(server: Server, clock: DatabaseClock) -> None:
    assert clock.now() == 1050.0
    server.ticks += REFRESH_SECONDS / 2
    server.ahead_seconds = 2000.0
    assert clock.now() == 1050.0 + REFRESH_SECONDS / 2
    assert server.num_asked == 1
    server.ticks += REFRESH_SECONDS
    assert clock.now() == server.ticks + 2000.0
    assert server.num_asked == 2


def test_the_journey_is_counted(server: Server, clock: DatabaseClock) -> None:
    server.travel_seconds = 3.0
    assert clock.now() == pytest.approx(server.ticks + 1000.0)


def test_a_database_that_is_away_is_believed_what_it_said(server: Server, clock: DatabaseClock) -> None:
    clock.now()
    server.is_down = True
    server.ticks += REFRESH_SECONDS
    assert clock.now() == server.ticks + 1000.0
    server.ticks += RETRY_SECONDS / 2
    assert clock.now() == server.ticks + 1000.0
    assert server.num_asked == 2, "asked again too soon"
    server.is_down, server.ahead_seconds = False, 1500.0
    server.ticks += RETRY_SECONDS
    assert clock.now() == server.ticks + 1500.0


def test_one_that_never_answered_raises(server: Server, clock: DatabaseClock) -> None:
    server.is_down = True
    with pytest.raises(OperationalError):
        clock.now()


def test_a_real_one_says_what_time_it_is(database: Database) -> None:
    before = time.time()
    assert before - 0.5 <= database.now() <= time.time() + 0.5


@pytest.mark.parametrize("jump_seconds", [3600.0, -3600.0])
def test_a_clock_that_jumps_ends_no_lease(
    postgresql_url: str, storage: Storage, monkeypatch: pytest.MonkeyPatch, jump_seconds: float
) -> None:
    """Neither one that was granted before nor one that is granted after, and maintenance sees both alike."""
    fleet = [Database.from_url(postgresql_url) for _ in range(2)]
    worker, reaper = fleet
    project_id = make_tenant(worker).project_id
    with worker.transaction() as session:
        job_ids = [make_queued_job(session, project_id).id for _ in range(2)]
    values = {"owner": "w", "ttl_seconds": 60.0, "max_attempts": 3}
    with worker.transaction() as session:
        assert lease.claim(session, job_ids[0], now=worker.now(), **values) is not None
    clock = time.time
    monkeypatch.setattr(time, "time", lambda: clock() + jump_seconds)
    with worker.transaction() as session:
        assert lease.claim(session, job_ids[1], now=worker.now(), **values) is not None
    maintenance = Maintenance(
        reaper, storage, lambda _job_id: None, max_attempts=3, resend_after_seconds=60.0
    )
    assert maintenance.reap(maintenance.now()) == 0
    with reaper.snapshot() as session:
        assert {session.get_one(Job, job_id).status for job_id in job_ids} == {"running"}
    for database in fleet:
        database.close()
