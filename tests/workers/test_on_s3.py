"""Jobs on a bucket: what stages store and fetch, and what a store that fails costs them."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import msgspec
import pytest

from autoclave.hashing import file_sha256
from service.jobs.states import Stage
from service.storage import Storage, StorageUnavailableError
from tests import s3
from tests.autoclave.tiny import save_tiny_base
from tests.s3 import DROP, SLOW_DOWN, Fault, FaultyS3
from tests.workers.conftest import Bench, QueuedJob
from tests.workers.pipeline_bench import PipelineBench, outputs, unpack
from workers.attempt import StageError
from workers.child import child_environment
from workers.messages import Checkpointed, Noted
from workers.order import STORAGE_DOWN_EXIT, write_order
from workers.storage_outage import StorageOutage

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")


@pytest.fixture
def storage_url(faulty_s3_url: str) -> str:
    return faulty_s3_url


@pytest.fixture(scope="module")
def base_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture
def pipeline(tmp_path: Path, base_dir: Path, storage: Storage, storage_url: str) -> PipelineBench:
    return PipelineBench(tmp_path, base_dir, storage, storage_url)


def test_a_job_is_resumed_from_its_checkpoint_and_published(
    pipeline: PipelineBench, storage: Storage, faulty_s3: FaultyS3, tmp_path: Path
) -> None:
    """A store that stumbles now and then, and once stays away while a checkpoint is due."""
    order = msgspec.structs.replace(pipeline.order, checkpoint_every_seconds=1e-9)
    whole = pipeline.run(order)
    expected = outputs(whole)["train"]["adapter_sha256"]
    saved = [m for m in whole if isinstance(m, Checkpointed)]
    assert [m.step for m in saved] == [1, 2, 3, 4, 5]

    resumed = pipeline.resumed(order, whole, Stage.TRAIN, checkpoint=msgspec.to_builtins(saved[1]))
    num_requests = [0]

    def stumbling(_method: str, path: str) -> Fault | None:
        num_requests[0] += 1
        if "train-checkpoint-4" in path:
            return SLOW_DOWN
        return [None, None, SLOW_DOWN, None, DROP][num_requests[0] % 5]

    faulty_s3.rule = stumbling
    messages = pipeline.run(resumed)
    faulty_s3.heal()
    assert [m.step for m in messages if isinstance(m, Checkpointed)] == [3, 5]
    notes = [m.text for m in messages if isinstance(m, Noted)]
    assert "Checkpoint after step 4 not saved, the storage does not answer" in notes
    assert outputs(messages)["train"]["adapter_sha256"] == expected, "resumed to other weights"
    published = pipeline.published(messages)
    storage.download(published.storage_key, tmp_path / "adapter.tar", sha256=published.sha256)
    assert (tmp_path / "adapter.tar").stat().st_size == published.num_bytes
    assert "adapter_model.safetensors" in unpack(storage, published)


def test_an_outage_ends_the_attempt_and_another_one_goes_on(
    pipeline: PipelineBench, faulty_s3: FaultyS3
) -> None:
    faulty_s3.fail(SLOW_DOWN, path="/sanitize/")
    with pytest.raises(StorageUnavailableError, match="503 SlowDown"):
        pipeline.run(pipeline.order)
    first = pipeline.said
    assert list(outputs(first)) == ["prepare", "train"]
    faulty_s3.heal()
    messages = pipeline.run(pipeline.resumed(pipeline.order, first, Stage.SANITIZE))
    pipeline.published(messages)


def test_the_child_says_that_it_was_the_storage(
    pipeline: PipelineBench, faulty_s3: FaultyS3, tmp_path: Path
) -> None:
    """As its own process, with the environment that a worker gives it."""
    Path(pipeline.order.scratch).mkdir()
    write_order(pipeline.order, tmp_path / "order.json")
    faulty_s3.fail(SLOW_DOWN)
    reading, writing = os.pipe()
    done = subprocess.run(
        [sys.executable, "-m", "workers.runner", str(tmp_path / "order.json"), str(writing)],
        env=child_environment(dict(os.environ), pipeline.storage.child_environment),
        pass_fds=(writing,),
        check=False,
        timeout=120,
        capture_output=True,
        text=True,
    )
    os.close(reading)
    os.close(writing)
    assert done.returncode == STORAGE_DOWN_EXIT, done.stderr
    assert "503 SlowDown" in done.stderr
    assert s3.ACCESS_KEY not in done.stderr + done.stdout + (tmp_path / "order.json").read_text()


def test_a_child_gets_the_credentials_of_the_storage_and_no_others(
    storage: Storage,
) -> None:
    environment = {**s3.CREDENTIALS, "DATABASE_URL": "postgresql://u:p@h/n", "LINK_SECRET": "x"}
    assert set(s3.CREDENTIALS) <= child_environment(environment, storage.child_environment).keys()
    assert (
        not {"DATABASE_URL", "LINK_SECRET"} & child_environment(environment, storage.child_environment).keys()
    )
    assert not set(s3.CREDENTIALS) & child_environment(environment).keys()


def test_a_storage_that_fails_costs_no_attempt(
    bench: Bench, queued_job: QueuedJob, faulty_s3: FaultyS3
) -> None:
    job_id = queued_job()
    supervisor = bench.supervisor("finds_no_storage")
    supervisor.run_next()
    job = bench.job(job_id)
    assert (job.status, job.stage, job.attempt_count) == ("queued", "train", 0)
    assert bench.events(job_id)[-1].message == "Back in the queue: the storage did not answer"

    # The same worker takes nothing before the storage answers.
    faulty_s3.fail(SLOW_DOWN)
    thread = threading.Thread(target=supervisor.run_next)
    thread.start()
    time.sleep(3.0)
    assert (bench.job(job_id).status, bench.job(job_id).fencing_number) == ("queued", 1)
    faulty_s3.heal()
    bench.wait_until(lambda: bench.job(job_id).fencing_number == 2)
    thread.join(30)
    assert (bench.job(job_id).status, bench.job(job_id).attempt_count) == ("queued", 0)
    assert bench.run("happy", job_id).status == "succeeded"


def test_a_published_job_whose_report_cannot_be_stored_is_handed_back(
    bench: Bench, queued_job: QueuedJob, faulty_s3: FaultyS3
) -> None:
    job_id = queued_job()
    faulty_s3.fail(SLOW_DOWN, path="/files/")
    job = bench.run("happy", job_id)
    assert (job.status, job.stage, job.attempt_count) == ("queued", "publish", 0)
    faulty_s3.heal()
    assert bench.run("happy", job_id).status == "succeeded"


def test_what_cannot_be_deleted_now_does_not_matter(
    bench: Bench, queued_job: QueuedJob, faulty_s3: FaultyS3
) -> None:
    job_id = queued_job()
    faulty_s3.fail(SLOW_DOWN, path="?delete")
    assert bench.run("happy", job_id).status == "succeeded"
    assert bench.storage.keys(f"private/{job_id}") != []


def test_a_worker_that_stops_waits_no_longer(storage: Storage, faulty_s3: FaultyS3) -> None:
    shutdown = threading.Event()
    outage = StorageOutage(storage, shutdown, first_pause_seconds=0.01)
    outage.wait()
    outage.note(failed=True)
    faulty_s3.fail(SLOW_DOWN)
    thread = threading.Thread(target=outage.wait)
    thread.start()
    time.sleep(0.5)
    assert thread.is_alive()
    shutdown.set()
    thread.join(10)
    assert not thread.is_alive()


def test_an_uploaded_file_that_rotted_is_the_jobs_end(pipeline: PipelineBench, storage: Storage) -> None:
    storage.put("files/train", pipeline.files["train"].read_bytes().replace(b"answer", b"ANSWER"))
    with pytest.raises(StageError, match="not what was uploaded"):
        pipeline.run(pipeline.order)
    assert file_sha256(pipeline.files["train"]) == pipeline.order.training_file.sha256
