"""The real process that keeps a base: what its jobs find and make is what they would as fresh processes."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from service.db import Database
from service.models import Job
from service.settings import Settings
from service.storage import Storage
from tests.autoclave.tiny import save_tiny_base
from tests.builders import Tenant
from tests.exposition import samples
from tests.workers.forking.bench import ended, wait_until
from tests.workers.pipeline_bench import PipelineBench
from tests.workers.test_exact_resume import RealJobs
from tests.workers.test_supervisor import gone
from workers import resident_base as process
from workers.child import ChildProcess, GroupLeader, Handover, SpawnedProcess
from workers.forking.channel import Request
from workers.forking.resident import ResidentBase
from workers.forking.server import CannotForkError
from workers.job_processes import resident_base, server_environment
from workers.messages import Noted
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


@pytest.fixture
def jobs(bench: PipelineBench, database: Database, settings: Settings, tenant: Tenant) -> RealJobs:
    return RealJobs(bench, database, settings, tenant.project_id)


@pytest.mark.slow
@pytest.mark.usefixtures("several_threads")
def test_what_a_job_makes(jobs: RealJobs) -> None:
    """The same bits, from a base that is read once; until its files change."""

    def run(supervisor: Supervisor) -> Job:
        job_id = jobs.queue()
        assert supervisor.run_next()
        return jobs.job(job_id)

    made = [run(jobs.supervisor(resident_base_seconds=0.0))]
    with closing(jobs.supervisor()) as supervisor:
        made += [run(supervisor) for _ in range(2)]
        found = samples(jobs.metrics.registry)
        for base in ("fresh", "loaded", "resident"):
            assert found[f'ft_children_total{{base="{base}"}}'] == 1, base
        resident = supervisor._processes._resident
        assert resident is not None
        server = resident.pid
        assert server is not None
        log = (Path(jobs.settings.work_dir) / "resident-base.log").read_text()
        assert log.count("is kept, read and hashed") == 1
        (Path(jobs.bench.base_dir) / "generation_config.json").write_text("{}")
        changed = run(supervisor)
        assert gone([server])
        another = resident.pid
        assert another is not None
        assert another != server
    assert gone([another])
    for job in made:
        assert job.status == "succeeded", job.log_tail
    for stage in ("train", "sanitize"):
        assert len({job.stage_outputs[stage]["adapter_sha256"] for job in made}) == 1, stage
    reports = [job.safety_report or {} for job in made]
    for name in ("summary", "measurements", "frontier", "sparsity"):
        assert reports[0][name] == reports[1][name] == reports[2][name]
    assert (changed.status, changed.error_code) == ("failed", "base_mismatch")


def test_a_base_too_large_for_the_machine_is_not_kept(
    bench: PipelineBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(bench.base_dir)
    kept = process.kept_base(folder, "cpu")
    assert kept is not None
    num_bytes = sum(weight.numel() * 4 for weight in kept.model.parameters())
    assert kept.sha256 == bench.order.base.sha256
    monkeypatch.setattr(process, "machine_bytes", lambda: 2 * num_bytes - 1)
    assert process.kept_base(folder, "cpu") is None
    assert process.kept_base(folder, "cuda") is not None, "half the bytes there"


def test_a_base_that_cannot_be_loaded_is_left_to_the_job(tmp_path: Path) -> None:
    holder = process.Holder(0)
    assert not holder.prepare(str(tmp_path))
    assert holder.base is None


def test_several_gpus_that_train_together(bench: PipelineBench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "devices", lambda: ("cpu", 2))
    with pytest.raises(CannotForkError, match="2 GPUs train together") as caught:
        process.Holder(0).prepare(bench.order.base.path)
    assert caught.value.for_good
    assert process.Holder(1).prepare(bench.order.base.path)


def test_a_forked_process_whose_driver_is_spoilt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "_is_in_bad_fork", lambda: True)
    assert process.unfit() == "a library used the GPU before the fork"
