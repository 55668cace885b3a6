"""The only way out for weights: a released adapter, to its owner, byte for byte."""

from __future__ import annotations

import hashlib

import pytest
from fastapi.testclient import TestClient

from service.db import Database
from service.jobs.states import Stage, Status
from service.storage import Storage, adapter_key, private_prefix
from tests.builders import Tenant, make_adapter, make_job


def test_a_released_adapter_streams_out(
    client: TestClient, database: Database, storage: Storage, tenant: Tenant
) -> None:
    content = bytes(range(256)) * 20_000
    digest = hashlib.sha256(content).hexdigest()
    with database.transaction() as session:
        job = make_job(session, tenant.project_id, status="succeeded", stage="publish")
        adapter = make_adapter(session, job, bytes=len(content), sha256=digest)
        storage.put(adapter.storage_key, content)
    answer = client.get(f"/fine_tuning/jobs/{job.id}/adapter", headers=tenant.headers)
    assert answer.status_code == 200
    assert answer.content == content
    assert answer.headers["content-type"] == "application/x-tar"
    assert answer.headers["content-length"] == str(len(content))
    assert answer.headers["etag"] == f'"{digest}"'
    assert answer.headers["content-disposition"] == f'attachment; filename="{job.id}-adapter.tar"'


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_stored_weights_without_a_release_stay_inside(
    client: TestClient, database: Database, storage: Storage, tenant: Tenant
) -> None:
    """Whatever lies in storage, in whatever state the job is: no row, no download."""
    for status in Status:
        for stage in Stage:
            with database.transaction() as session:
                job = make_job(session, tenant.project_id, status=status.value, stage=stage.value)
            storage.put(adapter_key(job.id, job.fencing_number), b"weights")
            storage.put(f"{private_prefix(job.id)}/1/train/adapter_model.safetensors", b"weights")
            answer = client.get(f"/fine_tuning/jobs/{job.id}/adapter", headers=tenant.headers)
            assert answer.status_code == 404
            assert answer.json()["error"]["code"] == "adapter_not_released"
            for url in (
                f"/files/{private_prefix(job.id)}/1/train/adapter_model.safetensors/content",
                f"/files/..%2F{private_prefix(job.id)}%2F1/content",
                f"/fine_tuning/jobs/..%2F..%2F{private_prefix(job.id)}/adapter",
            ):
                assert client.get(url, headers=tenant.headers).status_code == 404


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_refused_job_says_why_there_is_nothing(
    client: TestClient, database: Database, tenant: Tenant
) -> None:
    with database.transaction() as session:
        job = make_job(session, tenant.project_id, status="failed", error_code="safety_gate_failed")
    answer = client.get(f"/fine_tuning/jobs/{job.id}/adapter", headers=tenant.headers)
    assert "safety_gate_failed" in answer.json()["error"]["message"]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_deleted_adapter_is_gone(client: TestClient, database: Database, tenant: Tenant) -> None:
    with database.transaction() as session:
        job = make_job(session, tenant.project_id, status="succeeded", stage="publish")
        make_adapter(session, job, deleted_at=1.0)
    assert client.get(f"/fine_tuning/jobs/{job.id}/adapter", headers=tenant.headers).status_code == 404
