"""Pausing and resuming over HTTP, in every state."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import select

from service.db import Database
from service.jobs import lease
from service.jobs.states import TERMINAL, Stage, Status
from service.models import JobEvent, OutboxMessage
from tests.builders import Tenant, get_job, make_file, make_job, make_queued_job


def act(client: TestClient, tenant: Tenant, job_id: str, action: str) -> Any:
    headers = tenant.headers | {"Content-Type": "application/json"}
    return client.post(f"/fine_tuning/jobs/{job_id}/{action}", headers=headers)


def test_pausing_in_every_state(client: TestClient, database: Database, tenant: Tenant) -> None:
    for status in Status:
        stages = [Stage.PREPARE] if status is Status.VALIDATING_FILES else list(Stage)
        for stage in stages:
            with database.transaction() as session:
                job_id = make_job(session, tenant.project_id, status=status.value, stage=stage.value).id
            answer = act(client, tenant, job_id, "pause")
            job, wire = get_job(database, job_id), answer.json()
            if status in TERMINAL or status is Status.VALIDATING_FILES:
                code = "job_already_terminal" if status in TERMINAL else "job_not_pausable"
                assert (answer.status_code, wire["error"]["code"]) == (400, code)
                assert job.status == status.value
            elif status is Status.RUNNING:
                assert (wire["status"], wire["stage"], wire["pause_requested"]) == ("running", stage, True)
                assert job.pause_requested_at is not None
            else:
                assert (wire["status"], wire["stage"], wire["paused_at"]) == ("queued", "paused", stage)
                assert (job.status, job.stage) == ("paused", stage.value)


def test_resuming_in_every_state(client: TestClient, database: Database, tenant: Tenant) -> None:
    for status in Status:
        with database.transaction() as session:
            job_id = make_job(session, tenant.project_id, status=status.value).id
        answer = act(client, tenant, job_id, "resume")
        with database.snapshot() as session:
            query = select(OutboxMessage.sequence).where(OutboxMessage.job_id == job_id)
            rung = len(session.scalars(query).all())
        if status in TERMINAL:
            assert (answer.status_code, answer.json()["error"]["code"]) == (400, "job_already_terminal")
        elif status is Status.PAUSED:
            assert (answer.json()["status"], answer.json()["stage"]) == ("queued", "prepare")
        else:
            assert answer.json()["status"] == status.value
        assert rung == (1 if status is Status.PAUSED else 0)


def test_both_may_be_sent_twice(client: TestClient, database: Database, tenant: Tenant) -> None:
    with database.transaction() as session:
        job_id = make_queued_job(session, tenant.project_id, attempt_count=1).id
    for action in ("pause", "pause", "resume", "resume"):
        assert act(client, tenant, job_id, action).status_code == 200
    with database.snapshot() as session:
        query = select(JobEvent.message).where(JobEvent.job_id == job_id).order_by(JobEvent.sequence)
        messages = ["The job was paused", "The job was resumed, back in the queue"]
        assert session.scalars(query).all() == messages
        assert len(session.scalars(select(OutboxMessage.sequence)).all()) == 2
    job = get_job(database, job_id)
    assert job.attempt_count == 1
    assert (job.queued_at or 0) > job.created_at, "at the end of the queue"


def test_a_running_job_is_asked_once_and_the_pause_can_be_taken_back(
    client: TestClient, database: Database, tenant: Tenant
) -> None:
    with database.transaction() as session:
        job_id = make_queued_job(session, tenant.project_id).id
    with database.transaction() as session:
        claim = lease.claim(session, job_id, owner="w", ttl_seconds=60.0, max_attempts=3, now=1.0)
    assert claim is not None

    def asked() -> lease.StopRequest | None:
        with database.transaction() as session:
            return lease.heartbeat(session, claim, ttl_seconds=60.0, now=2.0)

    for _ in range(2):
        act(client, tenant, job_id, "pause")
    assert asked() is lease.StopRequest.PAUSE
    assert act(client, tenant, job_id, "resume").json()["pause_requested"] is False
    assert asked() is None
    act(client, tenant, job_id, "pause")
    act(client, tenant, job_id, "cancel")
    assert asked() is lease.StopRequest.CANCEL
    events = client.get(f"/fine_tuning/jobs/{job_id}/events", headers=tenant.headers).json()["data"]
    wanted = "Pause requested; the job stops at its next step and keeps what it has done"
    assert [event["message"] for event in reversed(events)][1:] == [
        wanted,
        "The request to pause was taken back",
        wanted,
        "Cancel requested; the job ends at its next step",
    ]


def test_the_reaper_pauses_what_should_pause(database: Database, tenant: Tenant) -> None:
    with database.transaction() as session:
        job = make_job(
            session,
            tenant.project_id,
            status="running",
            stage="train",
            lease_expires_at=5.0,
            attempt_count=1,
            pause_requested_at=4.0,
        )
        lease.reap(session, job, max_attempts=3, now=6.0)
        job_id = job.id
    job = get_job(database, job_id)
    assert (job.status, job.stage, job.attempt_count, job.pause_requested_at) == ("paused", "train", 1, None)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_paused_job_can_be_cancelled_and_keeps_its_file(
    client: TestClient, database: Database, tenant: Tenant
) -> None:
    with database.transaction() as session:
        file_id = make_file(session, tenant.project_id).id
        job_id = make_job(session, tenant.project_id, status="paused", training_file_id=file_id).id
    answer = client.delete(f"/files/{file_id}", headers=tenant.headers)
    assert answer.json()["error"]["code"] == "file_in_use"
    assert act(client, tenant, job_id, "cancel").json()["status"] == "cancelled"
    assert client.delete(f"/files/{file_id}", headers=tenant.headers).status_code == 200
