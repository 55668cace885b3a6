from __future__ import annotations

import re
import time
from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from service.db import Database
from service.fleet.states import WorkerState
from tests.browser.conftest import assert_accessible, sign_in
from tests.builders import Tenant, make_job, make_queued_job
from tests.service.dashboard.rows import make_measured_job, make_running_job, make_worker

PAGES = {
    "/dashboard": "Now",
    "/dashboard/jobs": "Jobs",
    "/dashboard/safety": "Safety",
    "/dashboard/tenants": "Tenants",
    "/dashboard/health": "Health",
    "/dashboard/audit": "Audit log",
}


@pytest.fixture
def busy(database: Database, tenant: Tenant) -> str:
    """The id of a running job; a bit of everything is there."""
    old = time.time() - 7200
    with database.transaction() as session:
        job = make_running_job(session, tenant.project_id, worker_id="w", suffix="s" * 64)
        make_worker(session, id="w", state=WorkerState.BUSY, job_id=job.id)
        make_worker(session, id="v", host="another-rather-long-name.example.internal", heartbeat_at=old)
        make_running_job(session, tenant.project_id, worker_id="v", heartbeat_at=old)
        make_queued_job(session, tenant.project_id)
        make_job(session, tenant.project_id, status="failed", stage="train", error_code="worker_lost")
        for number, result in enumerate(("passed", "passed", "refused", "waived")):
            make_measured_job(
                session, tenant.project_id, result=result, utility=(80.0, 70.0), base=10.0 + number
            )
    return job.id


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_page_is_accessible(
    open_page: Callable[..., Page], operator_key: str, tenant: Tenant, busy: str, width: int, theme: str
) -> None:
    page = open_page(width=width, theme=theme)
    sign_in(page, operator_key)
    for path, title in {**PAGES, f"/dashboard/tenants/{tenant.project_id}": "Tests"}.items():
        page.goto(path)
        expect(page.get_by_role("heading", level=1)).to_have_text(title)
        assert_accessible(page)


def test_empty_pages_are_accessible(open_page: Callable[..., Page], operator_key: str) -> None:
    page = open_page()
    sign_in(page, operator_key)
    for path in PAGES:
        page.goto(path)
        assert_accessible(page)


def test_now_follows_what_happens(
    open_page: Callable[..., Page], operator_key: str, database: Database, tenant: Tenant, busy: str
) -> None:
    page = open_page()
    sign_in(page, operator_key)
    row = page.locator("tr", has_text="node-1").first
    expect(row).to_contain_text("412")
    expect(row.locator("time")).to_have_text(re.compile("ago|now"))
    with database.transaction() as session:
        make_worker(session, id="w", state=WorkerState.STOPPING, job_id=busy, heartbeat_at=time.time())
    expect(row).to_contain_text("stopping", timeout=10_000)
    # The age stands there at once after a swap, not the moment.
    expect(row.locator("time")).not_to_contain_text("UTC")


def test_a_key_is_revoked_after_a_question(
    open_page: Callable[..., Page], operator_key: str, tenant: Tenant
) -> None:
    page = open_page()
    sign_in(page, operator_key)
    page.goto(f"/dashboard/tenants/{tenant.project_id}")
    questions = []

    def answer(accept: bool) -> Callable[..., None]:
        def on_dialog(dialog: object) -> None:
            questions.append(dialog.message)  # type: ignore[attr-defined]
            dialog.accept() if accept else dialog.dismiss()  # type: ignore[attr-defined]

        return on_dialog

    page.once("dialog", answer(False))
    page.get_by_role("button", name="Revoke Tests").click()
    expect(page.get_by_role("button", name="Revoke Tests")).to_be_visible()
    page.once("dialog", answer(True))
    page.get_by_role("button", name="Revoke Tests").click()
    expect(page.get_by_role("status").filter(has_text="The key is revoked")).to_be_visible()
    assert all("Revoke the key Tests" in question for question in questions)
    assert len(questions) == 2


def test_quotas_are_set_and_a_mistake_is_shown(
    open_page: Callable[..., Page], operator_key: str, tenant: Tenant
) -> None:
    page = open_page(tolerate=(400,))
    sign_in(page, operator_key)
    page.goto(f"/dashboard/tenants/{tenant.project_id}")
    page.get_by_label("Storage").fill("a lot")
    page.get_by_role("button", name="Set quotas").click()
    expect(page.get_by_role("alert")).to_contain_text("is no whole number")
    assert_accessible(page)
    page.get_by_label("Storage").fill("3 GB")
    page.get_by_role("button", name="Set quotas").click()
    expect(page.get_by_label("Storage")).to_have_value("3000000000")


def test_filters_without_a_mouse(
    open_page: Callable[..., Page], operator_key: str, tenant: Tenant, busy: str
) -> None:
    page = open_page()
    sign_in(page, operator_key)
    page.goto("/dashboard/jobs")
    page.get_by_label("Id or suffix").fill(busy)
    page.keyboard.press("Enter")
    page.wait_for_url("**q=ftjob-*")
    expect(page.locator("tbody tr")).to_have_count(1)


def test_the_log_is_downloaded(open_page: Callable[..., Page], operator_key: str) -> None:
    page = open_page()
    sign_in(page, operator_key)
    page.goto("/dashboard/audit")
    with page.expect_download() as download:
        page.get_by_role("link", name="Download as CSV").click()
    assert download.value.suggested_filename.endswith(".csv")
    assert "operator_key.created" in download.value.path().read_text()
