"""From the end of a job to what OpenAI's client reads in a real receiver, through API, database and loop."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import structlog
from fastapi.testclient import TestClient
from openai import AsyncOpenAI, InvalidWebhookSignatureError
from sqlalchemy import select, update

from service.db import Database
from service.jobs.service import cancel_job
from service.jobs.states import Stage, Status
from service.jobs.transitions import fail, move
from service.models import Webhook, WebhookDelivery
from service.settings import Settings
from tests.builders import Tenant, make_job, make_webhook
from tests.receiver import Authority, Receiver, running_receiver
from tests.waiting import wait_until
from tests.workers.webhooks.deeds import (
    INTERVAL_SECONDS,
    Create,
    log_of,
    unwrap,
)
from workers.webhooks import WebhookLoop, webhook_loop_from_settings


def test_every_end_of_a_job_reaches_its_owner(
    loop: WebhookLoop,
    create: Create,
    client: TestClient,
    database: Database,
    tenant: Tenant,
    receiver: Receiver,
) -> None:
    webhook = create()
    with database.transaction() as session:
        ids = [make_job(session, tenant.project_id, status="running", stage="publish").id for _ in range(2)]
        ids.append(make_job(session, tenant.project_id).id)
    with database.transaction() as session:
        move(session, ids[0], (Status.SUCCEEDED, Stage.PUBLISH), message="m", now=time.time())
    with database.transaction() as session:
        fail(session, ids[1], Stage.PUBLISH, code="worker_lost", message="m", param=None, now=time.time())
    answer = client.post(f"/fine_tuning/jobs/{ids[2]}/cancel", headers=tenant.headers)
    assert answer.json()["status"] == "cancelled"

    messages = receiver.wait_for(3)
    events = {event.data.id: event for event in (unwrap(message, webhook["secret"]) for message in messages)}
    assert [events[id].type for id in ids] == [
        "fine_tuning.job.succeeded",
        "fine_tuning.job.failed",
        "fine_tuning.job.cancelled",
    ]
    assert all(abs(event.created_at - time.time()) < 60 for event in events.values())
    assert {m.headers["webhook-id"] for m in messages} == {event.id for event in events.values()}
    assert {(m.path, m.headers["content-type"]) for m in messages} == {("/hook", "application/json")}
    wait_until(lambda: all(row["state"] == "delivered" for row in log_of(client, tenant, webhook["id"])))
    rows = {row["job_id"]: row for row in log_of(client, tenant, webhook["id"])}
    assert {rows[id]["event_id"] for id in ids} == {m.headers["webhook-id"] for m in messages}
    for row in rows.values():
        (attempt,) = row["attempts"]
        assert (attempt["status"], attempt["error"]) == (200, None)
        assert 0 <= attempt["milliseconds"] < 5000
    time.sleep(5 * INTERVAL_SECONDS)
    assert len(receiver.received) == 3


def test_the_asynchronous_client_verifies_too(
    loop: WebhookLoop, create: Create, client: TestClient, tenant: Tenant, receiver: Receiver
) -> None:
    webhook = create()
    client.post(f"/webhooks/{webhook['id']}/test", headers=tenant.headers)
    (message,) = receiver.wait_for(1)
    event: Any = AsyncOpenAI(api_key="k", webhook_secret=webhook["secret"]).webhooks.unwrap(
        message.body, message.headers
    )
    assert (event.type, event.data.id) == ("fine_tuning.job.succeeded", "ftjob-test")


def test_both_secrets_verify_after_a_rotation(
    loop: WebhookLoop, create: Create, client: TestClient, tenant: Tenant, receiver: Receiver
) -> None:
    webhook = create()
    url = f"/webhooks/{webhook['id']}"
    new = client.post(f"{url}/rotate", headers=tenant.headers).json()["secret"]
    client.post(f"{url}/test", headers=tenant.headers)
    (message,) = receiver.wait_for(1)
    assert unwrap(message, new).id == unwrap(message, webhook["secret"]).id
    with pytest.raises(InvalidWebhookSignatureError):
        unwrap(message, create()["secret"])


def test_a_failing_receiver_is_tried_again_with_the_same_id(
    loop: WebhookLoop,
    create: Create,
    client: TestClient,
    database: Database,
    tenant: Tenant,
    receiver: Receiver,
) -> None:
    webhook = create()
    receiver.status = 503
    client.post(f"/webhooks/{webhook['id']}/test", headers=tenant.headers)
    receiver.wait_for(1)
    wait_until(lambda: log_of(client, tenant, webhook["id"])[0]["attempts"])
    (row,) = log_of(client, tenant, webhook["id"])
    assert (row["state"], row["attempts"][0]["status"]) == ("pending", 503)
    assert 2 <= row["next_attempt_at"] - row["created_at"] <= 8
    receiver.status = 204
    with database.transaction() as session:
        session.execute(update(WebhookDelivery).values(next_attempt_at=time.time()))
    first, second = receiver.wait_for(2)
    assert first.headers["webhook-id"] == second.headers["webhook-id"]
    assert first.body == second.body
    assert unwrap(second, webhook["secret"]).id == row["event_id"]
    wait_until(lambda: log_of(client, tenant, webhook["id"])[0]["state"] == "delivered")
    shown = client.get(f"/webhooks/{webhook['id']}", headers=tenant.headers).json()
    assert shown["failing_since"] is None


def test_gone_disables(
    loop: WebhookLoop, create: Create, client: TestClient, tenant: Tenant, receiver: Receiver
) -> None:
    url = f"/webhooks/{create()['id']}"
    receiver.status = 410
    client.post(f"{url}/test", headers=tenant.headers)
    wait_until(lambda: not client.get(url, headers=tenant.headers).json()["enabled"])
    assert client.get(url, headers=tenant.headers).json()["disabled_reason"] == "gone"


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_https_with_the_settings_own_authority(
    database: Database, tenant: Tenant, settings: Settings, tmp_path: Path, client: TestClient
) -> None:
    authority = Authority(tmp_path)
    with running_receiver(authority.certificate("localhost")) as receiver:
        settings = settings.model_copy(
            update={"webhook_ports": str(receiver.port), "webhook_ca_file": authority.file}
        )
        with database.transaction() as session:
            url = f"https://localhost:{receiver.port}/secure"
            webhook = make_webhook(session, tenant.project_id, url=url)
            job = make_job(session, tenant.project_id)
            cancel_job(session, project_id=tenant.project_id, job_id=job.id, now=time.time())
        with webhook_loop_from_settings(database, settings):
            (message,) = receiver.wait_for(1)
            wait_until(lambda: log_of(client, tenant, webhook.id)[0]["state"] == "delivered")
    assert (message.path, message.server_name) == ("/secure", "localhost")
    assert unwrap(message, webhook.secret).data.id == job.id


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_no_log_holds_a_url_a_body_or_a_secret(
    loop: WebhookLoop, database: Database, tenant: Tenant, receiver: Receiver, client: TestClient
) -> None:
    receiver.status = 500
    urls = [f"{receiver.url}?token=hush", "https://localhost:1/hush", "http://127.0.0.1:1/hush", "hush"]
    with structlog.testing.capture_logs() as log:
        with database.transaction() as session:
            for url in urls:
                make_webhook(session, tenant.project_id, url=url)
            secrets = list(session.scalars(select(Webhook.secret)))
            job = make_job(session, tenant.project_id)
            cancel_job(session, project_id=tenant.project_id, job_id=job.id, now=time.time())
        wait_until(lambda: len([e for e in log if e["event"] == "webhook attempt failed"]) == 4)
    text = json.dumps(log, default=str)
    assert "hush" not in text
    assert not any(secret in text for secret in secrets)
