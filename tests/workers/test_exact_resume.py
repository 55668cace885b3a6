"""A job with the real child, drained, paused and killed in mid-training, ends with the weights of one that
was left alone; a drain and a pause repeat no step."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest

from service.db import Database
from service.jobs import service
from service.jobs.metrics import read_points
from service.models import AlignedBase, Job
from service.settings import Settings
from service.storage import Storage
from tests.autoclave.tiny import save_tiny_base
from tests.builders import Tenant, get_job, make_base, make_file, make_queued_job
from tests.workers.pipeline_bench import PipelineBench
from workers.metrics import WorkerMetrics
from workers.supervisor import Supervisor

pytestmark = pytest.mark.slow


class RealJobs:
    """Jobs on a tiny base, run by one supervisor whose children are real."""

    def __init__(self, bench: PipelineBench, database: Database, settings: Settings, project_id: str) -> None:
        self.bench, self.database, self.project_id = bench, database, project_id
        self.settings = settings.model_copy(
            update={"lease_ttl_seconds": 60.0, "heartbeat_seconds": 0.1, "checkpoint_every_seconds": 0.5}
        )
        self.shutdown = threading.Event()
        self.metrics = WorkerMetrics()
        order = bench.order
        with database.transaction() as session:
            make_base(
                session,
                id=order.base.id,
                path=order.base.path,
                sha256=order.base.sha256,
                safety_profile=order.profile(),
            )

    def queue(self) -> str:
        order = self.bench.order
        spec = order.spec | {"train": order.spec["train"] | {"n_epochs": 40}}
        with self.database.transaction() as session:
            files = {
                name: make_file(session, self.project_id, storage_key=file.storage_key, sha256=file.sha256).id
                for name, file in (
                    ("training_file_id", order.training_file),
                    ("validation_file_id", order.validation_file),
                )
                if file is not None
            }
            base_id = order.base.id
            base = session.get_one(AlignedBase, base_id)
            job = make_queued_job(
                session, self.project_id, base_id=base_id, spec=spec, base_sha256=base.sha256, **files
            )
            return job.id

    def supervisor(self, **changes: Any) -> Supervisor:
        """To be closed. `changes` are of the settings."""
        return Supervisor(
            self.database,
            self.bench.storage,
            self.settings.model_copy(update=changes),
            owner="test",
            work_dir=Path(self.settings.work_dir),
            shutdown=self.shutdown,
            metrics=self.metrics,
        )

    def run(self) -> None:
        with closing(self.supervisor()) as supervisor:
            supervisor.run_next()

    def run_until_step(
        self, job_id: str, step: int, stop: Callable[[], object], *, patience_seconds: float = 90
    ) -> Job:
        """`stop` is called once the job's progress shows the step of training."""
        thread = threading.Thread(target=self.run)
        thread.start()
        deadline = time.monotonic() + patience_seconds
        while (self.job(job_id).progress or {}).get("step", 0) < step or self.job(job_id).stage != "train":
            assert time.monotonic() < deadline, "no progress"
            assert thread.is_alive(), self.job(job_id).log_tail
            time.sleep(0.02)
        stop()
        thread.join(60)
        assert not thread.is_alive()
        self.shutdown.clear()
        return self.job(job_id)

    def job(self, job_id: str) -> Job:
        return get_job(self.database, job_id)

    def ask(self, action: Callable[..., None], job_id: str) -> None:
        with self.database.transaction() as session:
            action(session, project_id=self.project_id, job_id=job_id, now=time.time())

    def last_step(self, job_id: str) -> int:
        with self.database.snapshot() as session:
            return read_points(session, job_id)[-1].step


def runs_a_job(process: psutil.Process) -> bool:
    """Not the process that keeps the base; one that was forked from it."""
    module = "workers.resident_base"
    line = process.cmdline()
    return "workers.runner" in line or (module in line and module in psutil.Process(process.ppid()).cmdline())


def children() -> list[psutil.Process]:
    return [
        child
        for child in psutil.Process().children(recursive=True)
        if child.status() != psutil.STATUS_ZOMBIE and runs_a_job(child)
    ]


def kill_the_child() -> None:
    for child in children():
        os.kill(child.pid, signal.SIGKILL)


@pytest.fixture
def jobs(
    tmp_path: Path, database: Database, storage: Storage, settings: Settings, tenant: Tenant
) -> RealJobs:
    bench = PipelineBench(tmp_path, save_tiny_base(tmp_path / "base"), storage, settings.storage_url)
    return RealJobs(bench, database, settings, tenant.project_id)


def test_drained_paused_and_killed(jobs: RealJobs) -> None:
    whole_id = jobs.queue()
    jobs.run()
    broken_id = jobs.queue()
    assert jobs.job(whole_id).status == "succeeded", jobs.job(whole_id).log_tail

    def saved(job: Job) -> int:
        assert job.checkpoint is not None
        step: int = job.checkpoint["step"]
        return step

    drained = jobs.run_until_step(broken_id, 8, jobs.shutdown.set)
    assert (drained.status, drained.stage, drained.attempt_count) == ("queued", "train", 0)
    assert saved(drained) == jobs.last_step(broken_id), "not a step is lost"
    assert children() == []

    paused = jobs.run_until_step(
        broken_id, saved(drained) + 8, lambda: jobs.ask(service.pause_job, broken_id)
    )
    assert (paused.status, paused.stage, paused.attempt_count) == ("paused", "train", 0)
    assert saved(drained) < saved(paused) == jobs.last_step(broken_id)
    assert children() == [], "a paused job holds no accelerator"

    jobs.ask(service.resume_job, broken_id)
    killed = jobs.run_until_step(broken_id, saved(paused) + 8, kill_the_child)
    assert (killed.status, killed.stage, killed.attempt_count) == ("queued", "train", 1)
    assert saved(killed) >= saved(paused)

    jobs.run()
    whole, broken = jobs.job(whole_id), jobs.job(broken_id)
    assert broken.status == "succeeded", broken.log_tail
    keep: dict[str, Any] = {
        name: whole.stage_outputs["train"][name]
        for name in ("adapter_sha256", "final_loss", "steps", "trained_tokens", "best_step")
    }
    assert {name: broken.stage_outputs["train"][name] for name in keep} == keep
    with jobs.database.snapshot() as session:
        curves = [
            [(point.step, point.train_loss, point.valid_loss) for point in read_points(session, job_id)]
            for job_id in (whole_id, broken_id)
        ]
    assert curves[0] == curves[1]
