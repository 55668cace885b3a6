"""A database that goes away between two statements of a supervisor costs neither the bell nor an attempt."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import event
from sqlalchemy.exc import OperationalError

from service.jobs.transitions import LeaseLostError
from tests.workers.conftest import Bench, QueuedJob
from workers import database_outage, supervisor
from workers.supervisor import Supervisor


class Outage:
    """While it lasts, no transaction of this process begins."""

    def __init__(self) -> None:
        self.lasts = False
        self.num_refused = 0

    def refuse(self, _connection: Any) -> None:
        if self.lasts:
            self.num_refused += 1
            raise OperationalError("BEGIN", {}, Exception("the server closed the connection"))


@pytest.fixture
def outage(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Iterator[Outage]:
    monkeypatch.setattr(database_outage, "PAUSE_SECONDS", 0.01)
    outage = Outage()
    event.listen(bench.database.engine, "begin", outage.refuse)
    yield outage
    event.remove(bench.database.engine, "begin", outage.refuse)


def _refused(outage: Outage) -> None:
    deadline = time.monotonic() + 10
    while outage.num_refused < 3:
        assert time.monotonic() < deadline, "nobody asked the database"
        time.sleep(0.005)


def test_the_bell_is_answered_when_the_database_is_back(
    bench: Bench, queued_job: QueuedJob, outage: Outage
) -> None:
    job_id = queued_job()
    outage.lasts = True
    thread = threading.Thread(target=bench.supervisor("happy").answer, args=(job_id,))
    thread.start()
    _refused(outage)
    outage.lasts = False
    thread.join(20)
    assert bench.job(job_id).status == "succeeded"


def test_a_job_that_was_just_claimed_begins_when_the_database_is_back(
    bench: Bench, queued_job: QueuedJob, outage: Outage, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = queued_job()
    claim = Supervisor._claim

    def claim_and_lose(asking: Supervisor) -> Any:
        claimed = claim(asking)
        outage.lasts = True
        return claimed

    monkeypatch.setattr(Supervisor, "_claim", claim_and_lose)
    thread = threading.Thread(target=bench.supervisor("happy").run_next)
    thread.start()
    _refused(outage)
    outage.lasts = False
    thread.join(20)
    job = bench.job(job_id)
    assert (job.status, job.attempt_count) == ("succeeded", 1)


def test_a_sweep_that_fails_keeps_nobody_from_the_next_job(
    bench: Bench, queued_job: QueuedJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OperationalError("SELECT", {}, Exception("the server closed the connection"))

    job_ids = [queued_job(), queued_job()]
    monkeypatch.setattr(supervisor, "sweep_job", fail)
    bench.supervisor("happy").answer(job_ids[0])
    assert [bench.job(job_id).status for job_id in job_ids] == ["succeeded", "succeeded"]


def test_nothing_is_waited_for_beyond_the_lease(outage: Outage) -> None:
    def work() -> None:
        outage.lasts = True
        outage.refuse(None)

    with pytest.raises(LeaseLostError, match="did not answer"):
        database_outage.within_lease(work, lease_ttl_seconds=0.05, what="for a test")
    assert outage.num_refused > 1


def test_a_worker_that_stops_claims_nothing(outage: Outage) -> None:
    shutdown = threading.Event()

    def work() -> str:
        shutdown.set()
        outage.lasts = True
        outage.refuse(None)
        return "claimed"

    assert database_outage.until(shutdown, work, what="for a test") is None


def test_other_errors_are_raised() -> None:
    def work() -> None:
        raise ValueError("no outage")

    with pytest.raises(ValueError, match="no outage"):
        database_outage.within_lease(work, lease_ttl_seconds=60, what="for a test")
    with pytest.raises(ValueError, match="no outage"):
        database_outage.until(threading.Event(), work, what="for a test")
