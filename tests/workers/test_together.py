"""Jobs whose training several processes do: through the real child, killed, paused, cancelled, resumed."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
import torch

from autoclave import error_records
from autoclave.errors import RankLostError
from service.db import Database
from service.jobs import attempts, service
from service.jobs.states import Stage
from service.settings import Settings
from service.storage import Storage, StorageUnavailableError, errors
from tests.autoclave.tiny import save_tiny_base
from tests.builders import Tenant
from tests.workers.pipeline_bench import PipelineBench, outputs
from tests.workers.test_exact_resume import RealJobs
from workers import runner
from workers.attempt import Attempt, StageError
from workers.messages import MemoryEstimated
from workers.order import RANK_LOST_EXIT, Order, write_order
from workers.stages.prepare import say_memory
from workers.together import RAISED_AGAIN, num_processes


@pytest.fixture(scope="module")
def base_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture
def bench(tmp_path: Path, base_dir: Path, storage: Storage, settings: Settings) -> PipelineBench:
    """Without dropout, which draws otherwise in two processes."""
    bench = PipelineBench(tmp_path, base_dir, storage, settings.storage_url)
    spec = bench.order.spec
    spec = spec | {"lora": spec["lora"] | {"lora_dropout": 0.0}}
    bench.order = msgspec.structs.replace(bench.order, spec=spec)
    return bench


@pytest.fixture
def jobs(bench: PipelineBench, database: Database, settings: Settings, tenant: Tenant) -> RealJobs:
    return RealJobs(bench, database, settings.model_copy(update={"worker_processes": 2}), tenant.project_id)


def ranks() -> Iterator[psutil.Process]:
    """In the order of their ranks."""
    for process in psutil.Process().children(recursive=True):
        if process.status() == psutil.STATUS_ZOMBIE:
            continue
        if any("multiprocessing.spawn" in word for word in process.cmdline()):
            yield process


def kill_rank_1() -> None:
    first, second = sorted(ranks(), key=lambda process: process.pid)
    assert os.getpgid(first.pid) == os.getpgid(second.pid) == first.ppid(), "the child's group"
    os.kill(second.pid, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_job_of_two_processes_killed_and_paused(jobs: RealJobs, monkeypatch: pytest.MonkeyPatch) -> None:
    job_id = jobs.queue()
    ended_at = 0.0

    def kill() -> None:
        nonlocal ended_at
        ended_at = time.monotonic()
        kill_rank_1()

    killed = jobs.run_until_step(job_id, 8, kill, patience_seconds=250)
    assert time.monotonic() - ended_at < 40, "seconds, on a busy machine; a timeout would take minutes"
    assert (killed.status, killed.stage, killed.attempt_count) == ("queued", "train", 1)
    assert list(ranks()) == []
    with jobs.database.snapshot() as session:
        (first,) = attempts.list_attempts(session, job_id)
    assert (first.exit_reason, first.exit_code) == ("died", RANK_LOST_EXIT)
    assert "of 2 that trained together" in (first.log_tail or "")

    step = killed.checkpoint["step"] if killed.checkpoint else 0
    paused = jobs.run_until_step(
        job_id, step + 8, lambda: jobs.ask(service.pause_job, job_id), patience_seconds=250
    )
    assert (paused.status, paused.attempt_count) == ("paused", 1)
    assert paused.checkpoint is not None
    assert paused.checkpoint["step"] == jobs.last_step(job_id) > step, "not a step is lost"
    assert list(ranks()) == []

    jobs.ask(service.resume_job, job_id)
    jobs.run()
    done = jobs.job(job_id)
    assert done.status == "succeeded", done.log_tail
    train = done.stage_outputs["train"]
    assert (train["processes"], train["steps"]) == (2, 120)

    order = msgspec.structs.replace(jobs.bench.order, spec=done.spec, fencing_number=99)
    with monkeypatch.context() as patch:
        patch.setattr("workers.pipeline.STAGES", (Stage.PREPARE, Stage.TRAIN))
        alone = outputs(jobs.bench.run(order))["train"]
    assert (alone["processes"], alone["steps"]) == (1, 120)
    for name in ("first_loss", "final_loss", "best_valid_loss"):
        assert train[name] == pytest.approx(alone[name], rel=0, abs=1e-4), name
    assert train["trained_tokens"] == alone["trained_tokens"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_cancelling_ends_all_processes(jobs: RealJobs) -> None:
    job_id = jobs.queue()
    job = jobs.run_until_step(job_id, 4, lambda: jobs.ask(service.cancel_job, job_id), patience_seconds=250)
    assert job.status == "cancelled"
    assert list(ranks()) == []


def test_how_many_train_together(bench: PipelineBench, monkeypatch: pytest.MonkeyPatch) -> None:
    def count(wanted: int, device: str) -> int:
        return num_processes(msgspec.structs.replace(bench.order, num_processes=wanted), device)

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert [count(wanted, "cpu") for wanted in (0, 1, 2)] == [1, 1, 2]
    assert [count(wanted, "cuda") for wanted in (0, 1, 2, 3, 4)] == [3, 1, 2, 3, 3], "a GPU each"
    assert count(64, "cpu") == 4, "a step has four conversations"


def test_the_memory_of_a_machine_holds_all_of_them(
    bench: PipelineBench, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Heard:
        def __init__(self) -> None:
            self.said: list[Any] = []

        def say(self, message: Any) -> None:
            self.said.append(message)

    def estimated(wanted: int, device: str) -> int:
        heard = Heard()
        order = msgspec.structs.replace(bench.order, num_processes=wanted)
        say_memory(Attempt(order, storage, heard, device=device), longest_row=10)  # type: ignore[arg-type]
        (message,) = heard.said
        assert isinstance(message, MemoryEstimated)
        return message.num_bytes

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert estimated(2, "cpu") == 2 * estimated(1, "cpu")
    assert estimated(2, "cuda") == estimated(1, "cuda")


def test_a_lost_process_is_no_verdict(bench: PipelineBench, monkeypatch: pytest.MonkeyPatch) -> None:
    def lose(attempt: Attempt) -> None:
        attempt.reporter.close()
        raise RankLostError(1, 2, -9)

    monkeypatch.setattr(runner, "run_pipeline", lose)
    order: Order = bench.order
    Path(order.scratch).mkdir()
    path = bench.folder / "order.json"
    write_order(order, path)
    reading, writing = os.pipe()
    assert runner.main(path, writing) == RANK_LOST_EXIT
    with os.fdopen(reading, "rb") as pipe:
        assert pipe.read() == b""


def test_what_a_rank_raises_crosses_the_process() -> None:
    error = StageError("base_mismatch", "no", param="model", safety_report={"a": 1})
    again = error_records.decode(error_records.encode(error), RAISED_AGAIN)
    assert type(again) is StageError
    assert (vars(again), str(again)) == (vars(error), "no")


@pytest.mark.parametrize("kind", [k for k in RAISED_AGAIN if issubclass(k, StorageUnavailableError)])
def test_a_storage_that_fails_is_told_apart_by_the_child(kind: type[StorageUnavailableError]) -> None:
    error = kind("the bucket is away", reason="timed out")
    again = error_records.decode(error_records.encode(error), RAISED_AGAIN)
    assert (type(again), str(again)) == (kind, "the bucket is away (timed out)")


def test_every_error_of_the_storage_is_known() -> None:
    classes = {c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, OSError)}
    assert classes <= set(RAISED_AGAIN)
