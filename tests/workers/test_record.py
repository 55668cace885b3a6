"""What a supervisor writes, on both databases: fenced, and decided together with a cancel."""

from __future__ import annotations

import time
from typing import Any

import pytest
from sqlalchemy import select

from service.db import Database
from service.jobs import lease
from service.jobs.lease import Claim
from service.jobs.states import Stage
from service.jobs.transitions import LeaseLostError
from service.models import Job, JobCheckpoint, JobEvent, JobMetrics, OutboxMessage
from tests.builders import get_job
from tests.workers.conftest import QueuedJob
from workers.bells import ring_again
from workers.endings import (
    Cancelled,
    DeadlineExceeded,
    Died,
    Drained,
    Ending,
    Finished,
    OutOfMemory,
    Paused,
)
from workers.messages import (
    AdapterKept,
    AnyMessage,
    Checkpointed,
    Failed,
    MetricsMeasured,
    Noted,
    ProgressMade,
    Published,
    StageFinished,
    StepsMeasured,
)
from workers.record import JobRecord

PUBLISHED = Published(storage_key="adapters/x/1.tar", num_bytes=3, sha256="0" * 64, safety_report={"a": 1})
REFUSED = Failed(code="non_finite_loss", message="the loss became nan", safety_report=None)


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url


def take(database: Database, job_id: str, *, max_attempts: int = 2) -> tuple[Claim, JobRecord]:
    with database.transaction() as session:
        claim = lease.claim(
            session, job_id, owner="me", ttl_seconds=60, max_attempts=max_attempts, now=time.time()
        )
    assert claim is not None
    return claim, JobRecord(
        database, claim, model_id="ft:acme", lease_ttl_seconds=60, max_attempts=max_attempts
    )


def finish_until(record: JobRecord, stage: Stage) -> None:
    for done in Stage:
        if done is stage:
            return
        record.apply(StageFinished(stage=done, output={"of": done.value}))


@pytest.mark.parametrize(
    "message",
    [
        Noted(text="hello"),
        MetricsMeasured(step=1, total_steps=2, train_loss=0.5),
        StepsMeasured(first_step=1, train_loss=[0.5], learning_rate=[0.1], tokens_per_second=[None]),
        Checkpointed(prefix="private/x", step=3),
        AdapterKept(prefix="private/x", step=3, adapter_sha256="a" * 64, metrics={}, figures={}),
        StageFinished(stage=Stage.PREPARE, output={}),
    ],
    ids=lambda message: type(message).__name__,
)
def test_nothing_is_written_without_the_lease(
    database: Database, queued_job: QueuedJob, message: AnyMessage
) -> None:
    job_id = queued_job()
    _, record = take(database, job_id)
    with database.transaction() as session:
        lease.reap(session, session.get_one(Job, job_id), max_attempts=2, now=time.time())
    take(database, job_id)  # by somebody else
    with database.snapshot() as session:
        before = session.scalars(select(JobEvent.id)).all()
        assert session.scalars(select(JobMetrics.sequence)).all() == []
    writes = (
        lambda: record.apply(message),
        lambda: record.heartbeat(ProgressMade(step=1, total_steps=2)),
        lambda: record.conclude(Cancelled(), log_tail=""),
    )
    for write in writes:
        with pytest.raises(LeaseLostError):
            write()
    with database.snapshot() as session:
        assert session.scalars(select(JobEvent.id)).all() == before
        assert session.scalars(select(JobMetrics.sequence)).all() == []
        assert session.scalars(select(JobCheckpoint.id)).all() == []
    job = get_job(database, job_id)
    assert (job.status, job.stage, job.checkpoint, job.progress) == ("running", "prepare", None, None)


def test_a_heartbeat_extends_the_lease_and_tells_of_a_cancel(
    database: Database, queued_job: QueuedJob
) -> None:
    job_id = queued_job()
    _, record = take(database, job_id)
    with database.transaction() as session:
        session.get_one(Job, job_id).lease_expires_at = 1.0
    assert record.heartbeat(ProgressMade(step=3, total_steps=9, loss=0.25)) is None
    job = get_job(database, job_id)
    assert (job.lease_expires_at or 0) > time.time() + 50
    assert job.progress is not None
    assert (job.progress["step"], job.progress["total_steps"], job.progress["loss"]) == (3, 9, 0.25)
    with database.transaction() as session:
        session.get_one(Job, job_id).cancel_requested_at = time.time()
    assert record.heartbeat() is lease.StopRequest.CANCEL


def test_the_estimate_is_what_is_left_and_what_later_stages_took_others(
    database: Database, queued_job: QueuedJob
) -> None:
    def estimate(**columns: Any) -> float | None:
        job_id = queued_job(**columns)
        _, record = take(database, job_id)
        record.heartbeat(ProgressMade(step=3, total_steps=9, seconds_remaining=100.0))
        return get_job(database, job_id).estimated_finish_at

    assert estimate(stage="train") is None, "no job has told yet how long the rest takes"
    now = time.time()
    assert 100 <= (estimate(stage="publish") or 0) - now < 110
    seconds = {"sanitize": 1000.0, "evaluate": 200.0, "publish": 30.0}
    queued_job(status="succeeded", finished_at=1.0, stage_seconds=seconds)
    assert 1330 <= (estimate(stage="train") or 0) - now < 1340
    assert 330 <= (estimate(stage="sanitize") or 0) - now < 340


def test_a_report_is_readable_as_soon_as_its_stage_ends(database: Database, queued_job: QueuedJob) -> None:
    job_id = queued_job()
    _, record = take(database, job_id)
    finish_until(record, Stage.EVALUATE)
    record.apply(StageFinished(stage=Stage.EVALUATE, output={}, safety_report={"alpha": 0.1}))
    job = get_job(database, job_id)
    assert (job.stage, job.safety_report) == ("publish", {"alpha": 0.1})
    assert job.stage_outputs.keys() == {"prepare", "train", "sanitize", "evaluate"}


@pytest.mark.parametrize(
    "ending",
    [
        Finished(PUBLISHED),
        Finished(REFUSED),
        DeadlineExceeded(),
        Paused(),
        Drained(),
        OutOfMemory(),
        Died(-9),
        Died(1),
    ],
    ids=str,
)
def test_a_cancel_that_came_first_wins_over_every_ending(
    database: Database, queued_job: QueuedJob, ending: Ending
) -> None:
    job_id = queued_job()
    _, record = take(database, job_id)
    finish_until(record, Stage.PUBLISH)
    with database.transaction() as session:
        session.get_one(Job, job_id).cancel_requested_at = time.time()
    assert record.conclude(ending, log_tail="") is True
    assert get_job(database, job_id).status == "cancelled"


@pytest.mark.parametrize(
    ("ending", "status", "code", "attempts"),
    [
        (Finished(PUBLISHED), "succeeded", None, 1),
        (Finished(REFUSED), "failed", "non_finite_loss", 1),
        (DeadlineExceeded(), "failed", "deadline_exceeded", 1),
        (OutOfMemory(), "failed", "out_of_memory", 1),
        (Drained(), "queued", None, 0),
        (Died(-9), "queued", None, 1),
        (Cancelled(), "cancelled", None, 1),
    ],
    ids=str,
)
def test_what_each_ending_leaves(
    database: Database, queued_job: QueuedJob, ending: Ending, status: str, code: str | None, attempts: int
) -> None:
    job_id = queued_job()
    _, record = take(database, job_id)
    finish_until(record, Stage.PUBLISH)
    over = record.conclude(ending, log_tail="last words")
    job = get_job(database, job_id)
    assert (job.status, job.error_code, job.attempt_count) == (status, code, attempts)
    assert over == (status != "queued")
    assert (job.finished_at is not None) == over
    assert job.lease_owner is None
    with database.snapshot() as session:
        rung = session.scalars(select(OutboxMessage.job_id)).all()
    assert rung == [job_id] * (1 if over else 2)


@pytest.mark.parametrize(
    ("ending", "status", "attempts"),
    [
        (Paused(), "paused", 0),
        (Drained(), "paused", 0),
        (Died(-9), "paused", 1),
        (Finished(PUBLISHED), "succeeded", 1),
        (Finished(REFUSED), "failed", 1),
        (DeadlineExceeded(), "failed", 1),
    ],
    ids=str,
)
def test_what_each_ending_leaves_of_a_job_that_should_pause(
    database: Database, queued_job: QueuedJob, ending: Ending, status: str, attempts: int
) -> None:
    job_id = queued_job()
    _, record = take(database, job_id)
    finish_until(record, Stage.PUBLISH)
    with database.transaction() as session:
        session.get_one(Job, job_id).pause_requested_at = 1.0
    over = record.conclude(ending, log_tail="")
    job = get_job(database, job_id)
    assert (job.status, job.attempt_count, job.pause_requested_at) == (status, attempts, None)
    assert over == (status != "paused")
    assert job.lease_owner is None
    with database.snapshot() as session:
        assert session.scalars(select(OutboxMessage.job_id)).all() == [job_id]


@pytest.mark.parametrize(("exit_code", "code"), [(-9, "worker_lost"), (1, "internal_error")])
def test_the_last_attempt_fails_by_name(
    database: Database, queued_job: QueuedJob, exit_code: int, code: str
) -> None:
    job_id = queued_job(attempt_count=1)
    _, record = take(database, job_id, max_attempts=2)
    assert record.conclude(Died(exit_code), log_tail="secret path") is True
    job = get_job(database, job_id)
    assert (job.status, job.error_code, job.log_tail) == ("failed", code, "secret path")
    assert "secret path" not in (job.error_message or "")


@pytest.mark.parametrize(("status", "num_messages"), [("queued", 2), ("running", 1), ("cancelled", 1)])
def test_ringing_again_is_only_for_queued_jobs(
    database: Database, queued_job: QueuedJob, status: str, num_messages: int
) -> None:
    job_id = queued_job()
    with database.transaction() as session:
        session.get_one(Job, job_id).status = status
    ring_again(database, job_id)
    with database.snapshot() as session:
        assert len(session.scalars(select(OutboxMessage.sequence)).all()) == num_messages
