"""Every operation with the unmodified `openai` client in strict mode, over a real socket.

Strict means that a response of another type than OpenAI's raises; the assertions here are about
what the values mean to somebody who uses the client.
"""

from __future__ import annotations

import asyncio
import io
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest
import structlog
from openai import AsyncOpenAI, OpenAI

from service.db import Database
from service.jobs.events import add_event
from service.middleware import CLIENT_CLOSED
from service.models import Job
from service.storage import Storage
from tests.builders import BASE_ID, Tenant, dataset, make_adapter, make_base


def finish(database: Database, storage: Storage, job_id: str) -> str:
    """What a worker would have done."""
    with database.transaction() as session:
        job = session.get_one(Job, job_id)
        job.status, job.stage, job.finished_at, job.trained_tokens = "succeeded", "publish", 9.0, 123
        job.safety_report = {"summary": {"harmful_score": {"base": 1.0, "before": 80.0, "after": 4.0}}}
        metrics = {"step": 1, "total_steps": 2, "train_loss": 0.5}
        add_event(session, job_id, "Step 1/2: training loss=0.50", now=8.0, type="metrics", data=metrics)
        adapter = make_adapter(session, job)
        storage.put(adapter.storage_key, b"data")
        return adapter.model_id


def test_every_operation(openai_client: OpenAI, database: Database, storage: Storage, tenant: Tenant) -> None:
    client = openai_client
    with database.transaction() as session:
        make_base(session)

    train = client.files.create(file=("träin.jsonl", dataset(12)), purpose="fine-tune")
    validation = client.files.create(file=io.BytesIO(dataset(10, tag="v")), purpose="fine-tune")
    assert (train.filename, train.status, train.bytes) == ("träin.jsonl", "processed", len(dataset(12)))
    assert client.files.wait_for_processing(train.id).id == train.id
    assert [file.id for file in client.files.list(limit=1)] == [validation.id, train.id]
    assert [file.id for file in client.files.list(order="asc", purpose="fine-tune")] == [
        train.id,
        validation.id,
    ]
    assert client.files.retrieve(train.id) == train
    assert client.files.content(train.id).read() == dataset(12)

    job = client.fine_tuning.jobs.create(
        model=BASE_ID,
        training_file=train.id,
        validation_file=validation.id,
        suffix="mine",
        seed=3,
        metadata={"team": "red"},
        hyperparameters={"n_epochs": 2, "batch_size": "auto", "learning_rate_multiplier": "auto"},
        method={
            "type": "supervised",
            "supervised": {"hyperparameters": {"n_epochs": 2}},
            "dpo": {"hyperparameters": {"beta": "auto"}},
            "reinforcement": {
                "grader": {
                    "type": "string_check",
                    "name": "n",
                    "input": "i",
                    "reference": "r",
                    "operation": "eq",
                }
            },
        },
        extra_body={"lora": {"r": 4}},
    )
    extra: dict[str, Any] = job.model_extra or {}
    assert (job.status, extra["stage"], extra["lora"]["r"]) == ("queued", "prepare", 4)
    assert (job.hyperparameters.n_epochs, job.hyperparameters.batch_size) == (2, 16)
    other = client.fine_tuning.jobs.create(model=BASE_ID, training_file=train.id)
    assert [found.id for found in client.fine_tuning.jobs.list(limit=1)] == [other.id, job.id]
    assert [found.id for found in client.fine_tuning.jobs.list(metadata={"team": "red"})] == [job.id]
    events = list(client.fine_tuning.jobs.list_events(job.id, limit=1))
    assert [event.message for event in events] == [
        "Files validated, moving job to queued state",
        f"Created fine-tuning job: {job.id}",
    ]
    paused = client.fine_tuning.jobs.pause(other.id)
    assert (paused.status, (paused.model_extra or {})["stage"]) == ("queued", "paused")
    resumed = client.fine_tuning.jobs.resume(other.id)
    assert (resumed.status, (resumed.model_extra or {})["stage"]) == ("queued", "prepare")
    assert client.fine_tuning.jobs.cancel(other.id).status == "cancelled"

    model_id = finish(database, storage, job.id)
    job = client.fine_tuning.jobs.retrieve(job.id)
    assert (job.status, job.fine_tuned_model, job.trained_tokens) == ("succeeded", model_id, 123)
    assert (job.model_extra or {})["safety"]["harmful_score"]["after"] == 4.0
    assert next(iter(client.fine_tuning.jobs.list_events(job.id))).type == "metrics"
    assert [model.id for model in client.models.list()] == [BASE_ID, model_id]
    assert client.models.retrieve(model_id).owned_by == tenant.organization_id
    assert client.models.retrieve(BASE_ID).id == BASE_ID
    report = client.get(f"/fine_tuning/jobs/{job.id}/safety_report", cast_to=dict[str, Any])
    assert report["summary"]["harmful_score"]["base"] == 1.0
    tar = client.get(f"/fine_tuning/jobs/{job.id}/adapter", cast_to=openai.HttpxBinaryResponseContent)
    assert tar.read() == b"data"

    deleted = client.models.delete(model_id)
    assert (deleted.id, deleted.object, deleted.deleted) == (model_id, "model", True)
    assert [model.id for model in client.models.list()] == [BASE_ID]
    assert client.fine_tuning.jobs.retrieve(job.id).fine_tuned_model == model_id
    for gone in (model_id, "ft:nobody"):
        with pytest.raises(openai.NotFoundError) as not_there:
            client.models.delete(gone)
        assert not_there.value.code == "model_not_found"
    with pytest.raises(openai.PermissionDeniedError) as base:
        client.models.delete(BASE_ID)
    assert (base.value.code, base.value.param) == ("base_not_deletable", "model")

    assert client.files.delete(train.id).deleted
    assert [file.id for file in client.files.list()] == [validation.id]


def test_every_operation_asynchronously(
    api_url: str, database: Database, tenant: Tenant, storage: Storage
) -> None:
    with database.transaction() as session:
        make_base(session)

    async def run() -> None:
        async with AsyncOpenAI(
            base_url=api_url, api_key=tenant.key, max_retries=0, _strict_response_validation=True
        ) as client:
            files = await asyncio.gather(
                *(client.files.create(file=dataset(10, tag=str(i)), purpose="fine-tune") for i in range(5))
            )
            assert {file.id async for file in client.files.list(limit=2)} == {file.id for file in files}
            file = await client.files.retrieve(files[0].id)
            assert (await client.files.content(file.id)).read() == dataset(10, tag="0")
            jobs = await asyncio.gather(
                *(client.fine_tuning.jobs.create(model=BASE_ID, training_file=file.id) for file in files)
            )
            assert {job.id async for job in client.fine_tuning.jobs.list(limit=2)} == {job.id for job in jobs}
            assert (await client.fine_tuning.jobs.pause(jobs[2].id)).status == "queued"
            assert (await client.fine_tuning.jobs.resume(jobs[2].id)).status == "queued"
            cancelled = await client.fine_tuning.jobs.cancel(jobs[0].id)
            assert cancelled.status == "cancelled"
            messages = [e.message async for e in client.fine_tuning.jobs.list_events(jobs[0].id, limit=1)]
            assert messages[0] == "The job was cancelled"
            assert len(messages) == 3
            job = await client.fine_tuning.jobs.retrieve(jobs[1].id)
            assert job.status == "queued"
            assert [model.id async for model in client.models.list()] == [BASE_ID]
            assert (await client.models.retrieve(BASE_ID)).id == BASE_ID
            model_id = finish(database, storage, jobs[3].id)
            deleted = await client.models.delete(model_id)
            assert (deleted.id, deleted.deleted) == (model_id, True)
            assert [model.id async for model in client.models.list()] == [BASE_ID]
            assert (await client.files.delete(files[0].id)).deleted
            with pytest.raises(openai.BadRequestError, match="has not ended"):
                await client.files.delete(files[1].id)

    asyncio.run(run())


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_errors_arrive_as_the_clients_own(
    openai_client: OpenAI, api_url: str, database: Database, tenant: Tenant
) -> None:
    client = openai_client
    with database.transaction() as session:
        make_base(session)
    with (
        OpenAI(base_url=api_url, api_key="My API Key", max_retries=0) as stranger,
        pytest.raises(openai.AuthenticationError) as wrong_key,
    ):
        stranger.files.list()
    assert wrong_key.value.code == "invalid_api_key"
    assert (wrong_key.value.request_id or "").startswith("req_")

    with pytest.raises(openai.BadRequestError) as bad_data:
        client.files.create(file=dataset(9) + b"{\n", purpose="fine-tune")
    assert (bad_data.value.code, bad_data.value.param) == ("invalid_training_file", "file")
    assert "line 10" in bad_data.value.message
    assert isinstance(bad_data.value.body, dict)
    assert bad_data.value.body["issues"][0]["line"] == 10

    with pytest.raises(openai.NotFoundError) as no_model:
        client.fine_tuning.jobs.create(model="gpt-x", training_file="file-x")
    assert (no_model.value.code, no_model.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.NotFoundError) as no_file:
        client.fine_tuning.jobs.create(model=BASE_ID, training_file="file-x")
    assert (no_file.value.code, no_file.value.param) == ("file_not_found", "training_file")

    file = client.files.create(file=dataset(10), purpose="fine-tune")
    job = client.fine_tuning.jobs.create(model=BASE_ID, training_file=file.id)
    client.fine_tuning.jobs.cancel(job.id)
    with pytest.raises(openai.BadRequestError) as ended:
        client.fine_tuning.jobs.cancel(job.id)
    assert ended.value.code == "job_already_terminal"


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_an_upload_cut_off_in_the_middle_leaves_nothing(
    api_url: str, database: Database, storage: Storage, tenant: Tenant
) -> None:
    host, port = api_url.removeprefix("http://").removesuffix("/v1").split(":")
    with structlog.testing.capture_logs() as log:
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            connection.sendall(
                b"POST /v1/files HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %b\r\n"
                b"Content-Type: multipart/form-data; boundary=b\r\nContent-Length: 1000000\r\n\r\n"
                b"--b\r\nContent-Disposition: form-data; name=purpose\r\n\r\nfine-tune\r\n"
                b'--b\r\nContent-Disposition: form-data; name=file; filename="x"\r\n\r\n%b'
                % (tenant.key.encode(), dataset(100))
            )
            time.sleep(0.2)
        deadline = time.monotonic() + 10
        while not log:
            assert time.monotonic() < deadline, "the server did not notice"
            time.sleep(0.01)
    assert [(entry["event"], entry["status"]) for entry in log] == [("request", CLIENT_CLOSED)]
    assert storage.keys("") == []
    with OpenAI(base_url=api_url, api_key=tenant.key, max_retries=0) as client:
        assert client.files.list().data == []


def test_many_clients_at_once(api_url: str, database: Database, tenant: Tenant) -> None:
    """More requests than threads, reads and writes mixed: none waits for a lock that only another
    waiting request could give back."""
    with database.transaction() as session:
        make_base(session)

    with (
        OpenAI(base_url=api_url, api_key=tenant.key, max_retries=0) as client,
        ThreadPoolExecutor(60) as threads,
    ):
        file = client.files.create(file=dataset(10), purpose="fine-tune")

        def one(_: int) -> str:
            job = client.fine_tuning.jobs.create(model=BASE_ID, training_file=file.id)
            client.fine_tuning.jobs.retrieve(job.id)
            return client.fine_tuning.jobs.cancel(job.id).status

        # A wait for each other would end in 503 for some, after the 30 s for which both databases wait.
        assert list(threads.map(one, range(60))) == ["cancelled"] * 60
