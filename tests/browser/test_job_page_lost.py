"""A job's page whose job, key or server goes away while it is open."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI
from playwright.sync_api import Page, expect
from sqlalchemy import delete, update

from service.app import create_app
from service.db import Database
from service.models import ApiKey, Job, JobEvent, OutboxMessage, WebSession
from service.settings import Settings
from service.storage import Storage
from tests.browser.conftest import sign_in
from tests.browser.test_job_page import Worker
from tests.builders import Tenant


def test_a_job_deleted_while_it_is_watched(
    open_page: Callable[..., Page], database: Database, tenant: Tenant, job_id: str
) -> None:
    page = open_page(tolerate=(404,))
    sign_in(page, tenant.key)
    page.goto(f"/app/jobs/{job_id}")
    with database.transaction() as session:
        for table in (JobEvent, OutboxMessage):
            session.execute(delete(table).where(table.job_id == job_id))
        session.execute(delete(Job).where(Job.id == job_id))
    expect(page.locator("#banner")).to_contain_text(f"'{job_id}'")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.wait_for_timeout(3500)
    assert asked == [], "what is gone does not come back"


def test_a_key_that_expires_while_its_holder_watches(
    open_page: Callable[..., Page], database: Database, tenant: Tenant, job_id: str
) -> None:
    page = open_page(tolerate=(401, 404))
    sign_in(page, tenant.key)
    page.goto(f"/app/jobs/{job_id}")
    with database.transaction() as session:
        session.execute(update(ApiKey).values(expires_at=time.time() - 1))
    page.wait_for_url(lambda url: "/signin?next=" in url)
    with database.transaction() as session:
        session.execute(update(ApiKey).values(expires_at=None))
        session.execute(delete(WebSession))
    page.fill("#key", tenant.key)
    page.keyboard.press("Enter")
    page.wait_for_url(f"**/app/jobs/{job_id}")


@contextmanager
def serving(app: FastAPI, port: int = 0) -> Iterator[int]:
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_config=None, ws="none"))
    thread = threading.Thread(target=server.run, name="restarted")
    thread.start()
    deadline = time.monotonic() + 30
    while not server.started:
        assert thread.is_alive(), "the server did not start; its log is above"
        assert time.monotonic() < deadline, "the server did not start within 30 s"
        time.sleep(0.01)
    yield int(server.servers[0].sockets[0].getsockname()[1])
    server.should_exit = True
    thread.join(timeout=30)
    assert not thread.is_alive()


def test_a_server_that_restarts_while_the_page_is_open(
    chromium: Callable[..., Page],
    settings: Settings,
    database: Database,
    storage: Storage,
    tenant: Tenant,
    job_id: str,
) -> None:
    context = chromium.new_context()  # type: ignore[attr-defined]
    page = context.new_page()
    try:
        with serving(create_app(settings, database=database, storage=storage)) as port:
            page.goto(f"http://127.0.0.1:{port}/signin?next=/app/jobs/{job_id}")
            page.fill("#key", tenant.key)
            page.keyboard.press("Enter")
            expect(page.locator("[data-status]")).to_have_text("queued")
            page.wait_for_load_state()
            page.evaluate("window.notReloaded = true")
        banner = page.locator("#banner")
        expect(banner).to_contain_text("does not answer", timeout=15_000)
        expect(page.locator("[data-status]")).to_have_text("queued")
        Worker(database, job_id).begin()
        with serving(create_app(settings, database=database, storage=storage), port):
            expect(page.locator("[data-status]")).to_have_text("running", timeout=15_000)
            expect(banner).to_be_hidden()
            assert page.evaluate("window.notReloaded")
            page.goto("about:blank")
    finally:
        context.close()
