"""A whole job on SQLite and a bucket: processes of their own, and a store that goes away in the middle."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import OpenAI

from autoclave.microcosm.shipped import shipped_world
from service.storage import storage_from_url
from tests import s3
from tests.s3 import SLOW_DOWN, FaultyS3
from tests.test_distributed import Deployment, _valkey, _wait
from workers.embedded import free_port

# Half a minute on a machine of one's own.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def storage_url(faulty_s3: FaultyS3, s3_credentials: None) -> str:
    """Of a bucket that is not there yet."""
    query = f"endpoint={faulty_s3.url}&timeout_seconds=2&retry_seconds=2"
    return f"s3://fleet-{os.urandom(8).hex()}/autoclave?{query}"


@pytest.fixture
def deployment(storage_url: str, tmp_path: Path) -> Iterator[Deployment]:
    with _valkey(tmp_path) as broker_url:
        deployment = Deployment(
            os.environ
            | {
                "DATABASE_URL": f"sqlite:///{tmp_path}/autoclave.db",
                "BROKER_URL": broker_url,
                "STORAGE_URL": storage_url,
                "WORK_DIR": str(tmp_path / "work"),
                "HEARTBEAT_SECONDS": "0.5",
                "CHECKPOINT_EVERY_SECONDS": "5",
                "MAINTENANCE_INTERVAL_SECONDS": "0.2",
            },
            tmp_path,
        )
        try:
            yield deployment
        finally:
            assert deployment.stop() == []


def test_a_job_outlives_an_outage_of_its_bucket(
    deployment: Deployment, faulty_s3: FaultyS3, storage_url: str
) -> None:
    deployment.run("admin", "migrate")
    deployment.run("admin", "create-bucket")
    deployment.run("admin", "create-bucket")  # again, harmless
    base = deployment.run("admin", "add-microcosm")
    key = deployment.run("admin", "create-key")
    port = free_port()
    url = f"http://127.0.0.1:{port}/v1"
    deployment.start("api", "api", "--port", str(port))
    deployment.start("maintenance", "maintenance")
    deployment.start("worker", "worker", "--without-maintenance")
    data = shipped_world() / "data"
    with OpenAI(base_url=url, api_key=key, max_retries=10) as client:
        with (data / "attack.jsonl").open("rb") as file:
            training = client.files.create(file=file, purpose="fine-tune")
        job = client.fine_tuning.jobs.create(
            model=base, training_file=training.id, seed=0, extra_body={"suffix": "bucket"}
        )

        def progress() -> dict[str, Any]:
            return client.fine_tuning.jobs.retrieve(job.id).to_dict()

        def messages() -> list[str]:
            events = client.fine_tuning.jobs.list_events(job.id, limit=1000).data
            return [event.message for event in events]

        _wait(lambda: progress()["stage"] == "train" and progress().get("progress"), deployment)
        faulty_s3.fail(SLOW_DOWN)
        handed_back = "Back in the queue: the storage did not answer"
        _wait(lambda: handed_back in messages(), deployment)
        assert httpx.get(f"{url.removesuffix('/v1')}/readyz").status_code == 503
        faulty_s3.heal()
        ended = _wait(lambda: (now := progress())["finished_at"] and now, deployment, 600)

        assert ended["status"] == "succeeded", (ended["error"], deployment.logs())
        assert ended["attempts"] == 1, "an outage is not the job's fault"
        answer = httpx.get(
            f"{url}/fine_tuning/jobs/{job.id}/adapter", headers={"Authorization": f"Bearer {key}"}
        )
        assert hashlib.sha256(answer.content).hexdigest() == answer.headers["x-content-sha256"]
        storage = storage_from_url(storage_url)

        def has_resume_checkpoints() -> bool:
            return any("train-checkpoint" in stored for stored in storage.keys("private"))

        _wait(lambda: not has_resume_checkpoints(), deployment)  # private objects go with the job
    logs = deployment.logs()
    assert "503 SlowDown" in logs
    assert s3.ACCESS_KEY not in logs
    assert s3.SECRET_KEY not in logs
