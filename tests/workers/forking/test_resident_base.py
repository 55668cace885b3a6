"""The real process that keeps a base: what its jobs find and make is what they would as fresh processes."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from service.db import Database
from service.models import AlignedBase, Job
from service.settings import Settings
from service.storage import Storage
from tests.autoclave.tiny import save_tiny_base
from tests.builders import Tenant, get_job, make_base, make_file, make_queued_job
from tests.exposition import samples
from tests.workers.forking.test_forking import ended, wait_until
from tests.workers.pipeline_bench import PipelineBench
from tests.workers.test_supervisor import gone
from workers.child import ChildProcess, GroupLeader, Handover, SpawnedProcess
from workers.forking.channel import Request
from workers.forking.resident import ResidentBase
from workers.job_processes import resident_base, runner_command, server_environment
from workers.messages import Noted
from workers.metrics import WorkerMetrics
from workers.order import write_order
from workers.supervisor import Supervisor

FACTS = [sys.executable, "-m", "tests.workers.forking.real_facts"]


@pytest.fixture
def bench(tmp_path: Path, storage: Storage, storage_url: str) -> PipelineBench:
    base = save_tiny_base(tmp_path / "base", hidden_size=128, intermediate_size=256, head_dim=32)
    return PipelineBench(tmp_path, base, storage, storage_url)


@pytest.fixture
def several_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """As an operator has it who sets nothing."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)


def test_where_there_is_none(settings: Settings, tmp_path: Path) -> None:
    assert resident_base(settings, tmp_path) is not None
    for name, value in (("resident_base_seconds", 0.0), ("worker_processes", 2)):
        assert resident_base(settings.model_copy(update={name: value}), tmp_path) is None


def test_what_the_process_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DATABASE_URL", "AWS_SECRET_ACCESS_KEY", "WANDB_API_KEY", "AUTOCLAVE_JUDGE_KEY"):
        monkeypatch.setenv(name, "hunter2")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    environment = server_environment()
    assert "hunter2" not in environment.values()
    assert environment["OMP_NUM_THREADS"] == "3"


def test_the_supervisor_has_no_torch() -> None:
    code = "import sys, workers.worker; sys.exit(any(name in sys.modules for name in ('torch', 'numpy')))"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
@pytest.mark.usefixtures("several_threads")
def test_what_a_job_finds(bench: PipelineBench, tmp_path: Path) -> None:
    order = bench.order
    Path(order.scratch).mkdir()
    write_order(order, tmp_path / "order.json")
    request = Request(order_path=str(tmp_path / "order.json"), base_path=order.base.path)
    environment = {**server_environment(), "PYTHONPATH": os.getcwd()}
    resident = ResidentBase(
        lambda descriptor: [*FACTS, "server", str(descriptor), "60", "0"],
        lambda: environment,
        log_path=tmp_path / "resident.log",
    )

    def fresh(handover: Handover) -> GroupLeader:
        command = [*FACTS, "fresh", str(tmp_path / "order.json")]
        return SpawnedProcess(lambda descriptor: [*command, str(descriptor)], handover)

    def fork(handover: Handover) -> GroupLeader:
        return resident.fork(request, handover, fresh)

    found: list[dict[str, Any]] = []
    try:
        for start, base in ((fresh, "fresh"), (fork, "loaded"), (fork, "resident")):
            with ChildProcess(start, log_path=tmp_path / "child.log") as child:
                wait_until(lambda child=child: child.exit_code() is not None, 120)
                assert ended(child) == 0, (tmp_path / "child.log").read_text()
                assert child.base == base, (tmp_path / "resident.log").read_text()
                message = child.message(1)
                assert isinstance(message, Noted)
                assert message.data is not None
                found.append(message.data)
    finally:
        resident.end()
    assert found[0]["same"] == found[1]["same"] == found[2]["same"]
    assert found[0]["same"]["at_start"]["threads"] in {os.cpu_count(), psutil.cpu_count(logical=False)}
    for name in ("random", "numpy", "torch", "name"):
        assert len({facts["own"][name] for facts in found}) == 3, "two jobs must not draw the same numbers"


class RealJobs:
    """A worker's supervisor with real children, on a tiny base."""

    def __init__(self, bench: PipelineBench, database: Database, settings: Settings, project_id: str) -> None:
        self.bench, self.database, self.project_id = bench, database, project_id
        self.settings = settings.model_copy(update={"lease_ttl_seconds": 60.0, "heartbeat_seconds": 0.1})
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

    def supervisor(self, **settings: Any) -> Supervisor:
        return Supervisor(
            self.database,
            self.bench.storage,
            self.settings.model_copy(update=settings),
            owner="test",
            work_dir=Path(self.settings.work_dir),
            shutdown=threading.Event(),
            child_command=runner_command,
            metrics=self.metrics,
        )

    def run(self, supervisor: Supervisor) -> Job:
        order = self.bench.order
        with self.database.transaction() as session:
            sha256 = session.get_one(AlignedBase, order.base.id).sha256
            file = make_file(
                session,
                self.project_id,
                storage_key=order.training_file.storage_key,
                sha256=order.training_file.sha256,
            )
            job_id = make_queued_job(
                session,
                self.project_id,
                base_id=order.base.id,
                base_sha256=sha256,
                spec=order.spec,
                training_file_id=file.id,
            ).id
        assert supervisor.run_next()
        return get_job(self.database, job_id)

    def starts(self) -> dict[str, float]:
        """By how the children came by their base."""
        found = samples(self.metrics.registry)
        return {
            base: found[f'ft_children_total{{base="{base}"}}'] for base in ("fresh", "loaded", "resident")
        }


@pytest.fixture
def jobs(
    bench: PipelineBench, sqlite_url: str, database: Database, settings: Settings, tenant: Tenant
) -> Iterator[RealJobs]:
    Path(settings.work_dir).mkdir(parents=True, exist_ok=True)
    return RealJobs(bench, database, settings, tenant.project_id)


@pytest.mark.slow
@pytest.mark.usefixtures("several_threads")
def test_what_a_job_makes(jobs: RealJobs) -> None:
    """The same bits, from a base that is read once; until its files change."""
    made = [jobs.run(jobs.supervisor(resident_base_seconds=0.0))]
    supervisor = jobs.supervisor()
    try:
        made += [jobs.run(supervisor) for _ in range(2)]
        assert jobs.starts() == {"fresh": 1, "loaded": 1, "resident": 1}
        resident = supervisor._processes._resident
        assert resident is not None
        server = resident.pid
        assert server is not None
        log = (Path(jobs.settings.work_dir) / "resident-base.log").read_text()
        assert log.count("is kept, read and hashed") == 1
        (Path(jobs.bench.base_dir) / "generation_config.json").write_text("{}")
        changed = jobs.run(supervisor)
        assert gone([server])
        assert resident.pid not in (None, server)
    finally:
        supervisor.close()
    for job in made:
        assert job.status == "succeeded", job.log_tail
    for stage in ("train", "sanitize"):
        assert len({job.stage_outputs[stage]["adapter_sha256"] for job in made}) == 1, stage
    reports = [job.safety_report or {} for job in made]
    for name in ("summary", "measurements", "frontier", "sparsity"):
        assert reports[0][name] == reports[1][name] == reports[2][name]
    assert (changed.status, changed.error_code) == ("failed", "base_mismatch")
