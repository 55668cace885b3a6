"""The loop that sends: several at once, beside others, stopped, and over a broken database."""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
import structlog
from fastapi.testclient import TestClient
from sqlalchemy import update

from service.db import Database
from service.jobs.service import cancel_job
from service.models import WebhookDelivery
from service.settings import Settings
from service.startup import StartError
from service.storage import Storage
from tests.builders import Tenant, make_job, make_tenant, make_webhook
from tests.receiver import Receiver
from tests.waiting import wait_until
from tests.workers.conftest import QueuedJob
from tests.workers.webhooks.deeds import (
    INTERVAL_SECONDS,
    Create,
    make_claim,
    states,
)
from workers.maintenance import Maintenance, maintenance_from_settings
from workers.webhooks import WebhookLoop, webhook_loop_from_settings


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_an_authority_file_that_cannot_be_used(
    database: Database, settings: Settings, tmp_path: Path
) -> None:
    with pytest.raises(StartError, match="WEBHOOK_CA_FILE"):
        webhook_loop_from_settings(
            database, settings.model_copy(update={"webhook_ca_file": tmp_path / "missing.pem"})
        )


def test_several_loops_send_each_event_once(
    database: Database, settings: Settings, receiver: Receiver
) -> None:
    ids = set()
    for tenant in [make_tenant(database) for _ in range(4)]:
        with database.transaction() as session:
            make_webhook(session, tenant.project_id, url=receiver.url)
            for _ in range(6):
                job = make_job(session, tenant.project_id)
                cancel_job(session, project_id=tenant.project_id, job_id=job.id, now=time.time())
                ids.add(job.id)
    loops = [webhook_loop_from_settings(database, settings) for _ in range(3)]
    with loops[0], loops[1], loops[2]:
        receiver.wait_for(24)
        wait_until(lambda: states(database) == ["delivered"] * 24)
        time.sleep(5 * INTERVAL_SECONDS)
    assert len(receiver.received) == 24
    assert {json.loads(message.body)["data"]["id"] for message in receiver.received} == ids
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("webhook")]


def test_what_a_dead_process_had_claimed_is_sent_by_another(
    database: Database, tenant: Tenant, settings: Settings, receiver: Receiver
) -> None:
    claim = make_claim(database, tenant, receiver.url)
    with webhook_loop_from_settings(database, settings):
        time.sleep(5 * INTERVAL_SECONDS)
        assert receiver.received == []
        with database.transaction() as session:
            session.execute(update(WebhookDelivery).values(leased_until=time.time() - 1))
        (message,) = receiver.wait_for(1)
    assert message.headers["webhook-id"] == claim.event_id


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_slow_receivers_hold_up_neither_the_queue_nor_other_projects(
    database: Database,
    storage: Storage,
    settings: Settings,
    tenant: Tenant,
    receiver: Receiver,
    queued_job: QueuedJob,
) -> None:
    go_on = threading.Event()
    slow = {"/slow": 0}

    def answer(handler: BaseHTTPRequestHandler) -> None:
        if handler.path == "/slow":
            slow["/slow"] += 1
            go_on.wait(20)
        handler.send_response(200)
        handler.send_header("content-length", "0")
        handler.end_headers()

    receiver.answer = answer
    other = make_tenant(database)
    with database.transaction() as session:
        make_webhook(session, tenant.project_id, url=receiver.url.replace("/hook", "/slow"))
        make_webhook(session, other.project_id, url=receiver.url)
        for who, number in ((tenant, 30), (other, 1)):
            for _ in range(number):
                job = make_job(session, who.project_id)
                cancel_job(session, project_id=who.project_id, job_id=job.id, now=time.time())
    rung: list[str] = []
    settings = settings.model_copy(update={"webhook_timeout_seconds": 20.0})
    started = time.monotonic()
    with maintenance_from_settings(database, storage, rung.append, settings):
        wait_until(lambda: slow["/slow"] == 4)
        job_id = queued_job()
        wait_until(lambda: rung == [job_id])
        wait_until(lambda: any(message.path == "/hook" for message in receiver.received))
        assert time.monotonic() - started < 10
        assert slow["/slow"] == 4, "no more than four at once of one project"
        go_on.set()
        wait_until(lambda: states(database) == ["delivered"] * 31)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_stopping_does_not_wait_for_a_slow_receiver(
    loop: WebhookLoop,
    create: Create,
    client: TestClient,
    tenant: Tenant,
    receiver: Receiver,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("workers.webhooks.STOP_SECONDS", 0.2)
    go_on = threading.Event()

    def answer(_: BaseHTTPRequestHandler) -> None:
        go_on.wait(20)

    receiver.answer = answer
    client.post(f"/webhooks/{create()['id']}/test", headers=tenant.headers)
    receiver.wait_for(1)
    started = time.monotonic()
    loop.__exit__(None, None, None)
    assert time.monotonic() - started < 3
    go_on.set()


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_the_loop_survives_a_broken_database(
    database: Database, settings: Settings, tenant: Tenant, receiver: Receiver
) -> None:
    with database.transaction() as session:
        make_webhook(session, tenant.project_id, url=receiver.url)
        session.connection().exec_driver_sql("ALTER TABLE webhook_deliveries RENAME TO away")
    with structlog.testing.capture_logs() as log, webhook_loop_from_settings(database, settings):
        wait_until(lambda: log)
        with database.transaction() as session:
            session.connection().exec_driver_sql("ALTER TABLE away RENAME TO webhook_deliveries")
        with database.transaction() as session:
            job = make_job(session, tenant.project_id)
            cancel_job(session, project_id=tenant.project_id, job_id=job.id, now=time.time())
        receiver.wait_for(1)
        wait_until(lambda: states(database) == ["delivered"])
    assert [entry["event"] for entry in log] == ["webhooks cannot be sent", "webhooks can be sent again"]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_maintenance_forgets_old_deliveries(
    database: Database, storage: Storage, tenant: Tenant, settings: Settings
) -> None:
    now = time.time()
    make_claim(database, tenant, "https://a.example/")
    with database.transaction() as session:
        session.execute(update(WebhookDelivery).values(state="delivered"))
    maintenance = Maintenance(database, storage, lambda _: None, max_attempts=1, resend_after_seconds=60)
    maintenance.tidy(now + 29 * 24 * 3600)
    assert states(database) == ["delivered"]
    maintenance.tidy(now + 31 * 24 * 3600)
    assert states(database) == []
