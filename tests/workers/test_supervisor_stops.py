"""A supervisor told to stop: a cancel, a pause, a shutdown, and several of them at once."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

import pytest

from service import outbox
from service.db import Database
from service.jobs import attempts, service
from service.models import Job
from tests.workers.conftest import Bench, QueuedJob
from tests.workers.test_supervisor import gone, texts


@pytest.mark.parametrize("behaviour", ["cooperates", "stubborn"])
def test_cancel_frees_the_process(bench: Bench, queued_job: QueuedJob, behaviour: str) -> None:
    job_id = queued_job()
    thread = bench.run_beside(behaviour, job_id)
    pids = bench.pids()
    assert not gone(pids)

    bench.change(job_id, cancel_requested_at=time.time())
    bench.wait_until(lambda: bench.job(job_id).status == "cancelled")
    assert gone(pids), "cancelled must mean that the process is gone"
    thread.join(10)
    assert bench.storage.keys("private") == []


def test_a_cancel_ends_a_child_that_hangs_without_waiting_for_a_heartbeat(
    bench: Bench, queued_job: QueuedJob
) -> None:
    """It is stopped, so it neither answers SIGTERM nor makes progress; the limits are long."""
    job_id = queued_job()
    thread = bench.run_beside("stubborn", job_id, heartbeat_seconds=50.0, terminate_grace_seconds=60.0)
    pids = bench.pids()
    os.kill(pids[0], signal.SIGSTOP)
    time.sleep(0.5)  # what it said before is written
    ask(bench.database, service.cancel_job, job_id)
    thread.join(20)
    assert not thread.is_alive()
    assert gone(pids)
    assert bench.job(job_id).status == "cancelled"


def ask(database: Database, action: Callable[..., None], job_id: str) -> None:
    with database.transaction() as session:
        project_id = session.get_one(Job, job_id).project_id
        action(session, project_id=project_id, job_id=job_id, now=time.time())


def test_a_paused_job_frees_its_process_and_goes_on_later(bench: Bench, queued_job: QueuedJob) -> None:
    job_id = queued_job()
    thread = bench.run_beside("pauses", job_id)
    bench.wait_until(lambda: bench.job(job_id).stage == "train")
    ask(bench.database, service.pause_job, job_id)
    thread.join(20)
    assert gone(bench.pids())
    job = bench.job(job_id)
    assert (job.status, job.stage, job.attempt_count) == ("paused", "train", 0)
    assert (job.checkpoint or {})["step"] == 7
    assert job.pause_requested_at is None
    assert bench.storage.keys(f"private/{job_id}"), "what it goes on from"
    assert bench.run("happy", job_id).status == "paused", "a doorbell starts no paused job"
    with bench.database.snapshot() as session:
        assert len(outbox.pending(session)) == 1, "and none is rung for it"

    ask(bench.database, service.resume_job, job_id)
    job = bench.run("pauses", job_id)
    assert (job.status, job.attempt_count) == ("succeeded", 1)
    assert texts(bench, job_id).count("The job was paused") == 1


def test_a_child_that_does_not_pause_in_time_is_ended(bench: Bench, queued_job: QueuedJob) -> None:
    job_id = queued_job()
    thread = bench.run_beside("stubborn", job_id, pause_grace_seconds=0.2)
    ask(bench.database, service.pause_job, job_id)
    thread.join(20)
    job = bench.job(job_id)
    assert (job.status, job.attempt_count) == ("paused", 0)
    assert gone(bench.pids())


def test_a_cancel_ends_a_pause_that_takes_long(bench: Bench, queued_job: QueuedJob) -> None:
    job_id = queued_job()
    thread = bench.run_beside("ignores_a_pause", job_id, pause_grace_seconds=60.0, cancel_grace_seconds=60.0)
    ask(bench.database, service.pause_job, job_id)
    time.sleep(0.5)
    assert not gone(bench.pids())
    ask(bench.database, service.cancel_job, job_id)
    thread.join(20)
    assert bench.job(job_id).status == "cancelled"


def test_a_pause_taken_back_puts_the_job_into_the_queue(bench: Bench, queued_job: QueuedJob) -> None:
    job_id = queued_job()
    thread = bench.run_beside("ignores_a_pause", job_id, pause_grace_seconds=2.0)
    ask(bench.database, service.pause_job, job_id)
    bench.wait_until(lambda: bool(list(bench.work_dir.glob("*/stop"))))
    ask(bench.database, service.resume_job, job_id)
    thread.join(20)
    job = bench.job(job_id)
    assert (job.status, job.attempt_count) == ("queued", 0)


def test_a_job_that_ends_while_it_should_pause_has_ended(bench: Bench, queued_job: QueuedJob) -> None:
    job_id = queued_job()
    bench.change(job_id, pause_requested_at=1.0)
    job = bench.run("happy", job_id)
    assert (job.status, job.pause_requested_at) in (("succeeded", None), ("paused", None))


@pytest.mark.parametrize("behaviour", ["crashes", "is_killed"])
def test_a_child_that_dies_while_it_should_pause(bench: Bench, queued_job: QueuedJob, behaviour: str) -> None:
    job_id = queued_job()
    bench.change(job_id, pause_requested_at=1.0)
    assert bench.run(behaviour, job_id).status == "paused"


def test_a_cancel_that_comes_at_the_very_end_still_counts(bench: Bench, queued_job: QueuedJob) -> None:
    job_id = queued_job()
    thread = bench.run_beside("cooperates", job_id, cancel_grace_seconds=20.0, heartbeat_seconds=10.0)
    # Ends the child without the heartbeat having seen the cancel.
    bench.change(job_id, cancel_requested_at=time.time())
    os.kill(bench.pids()[0], signal.SIGKILL)
    thread.join(10)
    assert bench.job(job_id).status == "cancelled"


def test_shutdown_hands_the_job_back_without_counting(bench: Bench, queued_job: QueuedJob) -> None:
    job_id = queued_job()
    thread = bench.run_beside("stubborn", job_id)
    began = time.monotonic()
    bench.shutdown.set()
    thread.join(10)
    assert time.monotonic() - began < 3
    job = bench.job(job_id)
    assert (job.status, job.attempt_count) == ("queued", 0)
    assert gone(bench.pids())
    with bench.database.snapshot() as session:
        assert [row.exit_reason for row in attempts.list_attempts(session, job_id)] == ["drained"]

    bench.run("happy", job_id)
    assert bench.job(job_id).status == "queued", "a worker that shuts down claims nothing"
    bench.shutdown.clear()
    assert bench.run("happy", job_id).status == "succeeded"


def test_a_shutdown_lets_the_child_save_first(bench: Bench, queued_job: QueuedJob) -> None:
    job_id = queued_job()
    thread = bench.run_beside("pauses", job_id, drain_grace_seconds=30.0)
    bench.wait_until(lambda: bench.job(job_id).stage == "train")
    bench.shutdown.set()
    thread.join(20)
    job = bench.job(job_id)
    assert (job.status, job.stage, job.attempt_count) == ("queued", "train", 0)
    assert (job.checkpoint or {})["step"] == 7
    assert gone(bench.pids())
    bench.shutdown.clear()
    assert bench.run("pauses", job_id).status == "succeeded"


def test_a_shutdown_hurries_a_pause(bench: Bench, queued_job: QueuedJob) -> None:
    job_id = queued_job()
    thread = bench.run_beside("ignores_a_pause", job_id, pause_grace_seconds=60.0)
    ask(bench.database, service.pause_job, job_id)
    bench.wait_until(lambda: bool(list(bench.work_dir.glob("*/stop"))))
    bench.shutdown.set()
    thread.join(10)
    assert not thread.is_alive()
    assert bench.job(job_id).status == "paused"


def test_a_cancel_ends_a_drain_and_does_not_lengthen_it(bench: Bench, queued_job: QueuedJob) -> None:
    job_id = queued_job()
    thread = bench.run_beside("stubborn", job_id, drain_grace_seconds=2.0, cancel_grace_seconds=60.0)
    bench.shutdown.set()
    bench.wait_until(lambda: bool(list(bench.work_dir.glob("*/stop"))))
    ask(bench.database, service.cancel_job, job_id)
    thread.join(10)
    assert bench.job(job_id).status == "cancelled"
    assert gone(bench.pids())
