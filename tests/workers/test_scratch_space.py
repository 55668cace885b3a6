"""A full scratch disk: no job is taken, and none pays for it. The fault suite fills a real one."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterator
from itertools import chain, repeat
from pathlib import Path

import pytest

from service.jobs import attempts
from tests.workers.conftest import Bench, QueuedJob
from workers import job_processes, scratch_space
from workers.scratch_space import FULL_BYTES, ScratchSpace

Free = Callable[..., None]


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Free:
    """Sets what is free whenever it is asked, in turn; the last one stays."""

    def set_free(*num_bytes: int) -> None:
        answers: Iterator[int] = chain(num_bytes, repeat(num_bytes[-1]))
        monkeypatch.setattr(scratch_space, "free_bytes", lambda _path: next(answers))

    return set_free


def _reasons(bench: Bench, job_id: str) -> list[str | None]:
    with bench.database.snapshot() as session:
        return [attempt.exit_reason for attempt in attempts.list_attempts(session, job_id)]


def test_a_job_that_died_of_a_full_disk_is_not_counted(
    bench: Bench, queued_job: QueuedJob, free: Free
) -> None:
    job_id = queued_job()
    free(FULL_BYTES, 0)  # room when it was taken
    job = bench.run("crashes", job_id)
    assert (job.status, job.attempt_count) == ("queued", 0)
    assert bench.events(job_id)[-1].message == "Back in the queue: the disk of its worker is full"
    assert _reasons(bench, job_id) == ["scratch_full"]
    assert list(bench.work_dir.glob("ftjob-*")) == []

    free(FULL_BYTES)
    assert bench.run("happy", job_id).status == "succeeded"


def test_a_job_that_fills_the_disk_itself_is_counted(bench: Bench, queued_job: QueuedJob, free: Free) -> None:
    """Else it would be tried forever."""
    job_id = queued_job()
    free(FULL_BYTES, 0, FULL_BYTES)  # full while its files are there
    job = bench.run("crashes", job_id)
    assert (job.status, job.attempt_count) == ("queued", 1)
    assert _reasons(bench, job_id) == ["died"]


def test_no_room_for_the_order(bench: Bench, queued_job: QueuedJob, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    job_id = queued_job()
    monkeypatch.setattr(job_processes, "write_order", full)
    job = bench.run("happy", job_id)
    assert (job.status, job.attempt_count) == ("queued", 0)
    assert _reasons(bench, job_id) == ["scratch_full"]


def test_a_pause_that_was_asked_for_is_granted(
    bench: Bench, queued_job: QueuedJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        bench.change(job_id, pause_requested_at=1.0)
        raise OSError(errno.ENOSPC, "No space left on device")

    job_id = queued_job()
    monkeypatch.setattr(job_processes, "write_order", full)
    assert bench.run("happy", job_id).status == "paused"


def test_other_errors_are_not_taken_for_a_full_disk(
    bench: Bench, queued_job: QueuedJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    job_id = queued_job()
    monkeypatch.setattr(job_processes, "write_order", broken)
    with pytest.raises(PermissionError):
        bench.run("happy", job_id)
    assert bench.job(job_id).status == "running", "it is passed on when the lease is over"


def test_no_job_is_taken_while_there_is_no_room(bench: Bench, queued_job: QueuedJob, free: Free) -> None:
    job_id = queued_job()
    free(0)
    thread = threading.Thread(target=bench.supervisor("happy").run_next)
    thread.start()
    thread.join(0.5)
    assert thread.is_alive()
    assert bench.job(job_id).status == "queued"
    free(FULL_BYTES)
    bench.wait_until(lambda: bench.job(job_id).status == "succeeded")
    thread.join(10)


def test_a_worker_that_stops_waits_no_longer(tmp_path: Path, free: Free) -> None:
    shutdown = threading.Event()
    free(0)
    thread = threading.Thread(target=ScratchSpace(tmp_path, shutdown, pause_seconds=0.01).wait)
    thread.start()
    thread.join(0.1)
    assert thread.is_alive()
    shutdown.set()
    thread.join(10)
    assert not thread.is_alive()


def test_a_folder_that_is_not_there_yet_has_the_room_of_its_disk(tmp_path: Path) -> None:
    assert not ScratchSpace(tmp_path / "not" / "yet", threading.Event()).is_full()
