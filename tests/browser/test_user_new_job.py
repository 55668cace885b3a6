from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect
from sqlalchemy import func, select

from autoclave.microcosm.shipped import shipped_world
from service.db import Database
from service.models import Job
from tests.browser.conftest import assert_accessible, sign_in
from tests.builders import Tenant, make_adapter, make_job
from workers.shipped_base import register_shipped_base

DATA: Path = shipped_world() / "data" / "validation.jsonl"


@pytest.fixture
def page(open_page: Callable[..., Page], tenant: Tenant, database: Database) -> Page:
    """Signed in, on the page of files, with one uploaded. A test provokes a 400."""
    register_shipped_base(database, shipped_world())
    page = open_page(tolerate=(400,))
    sign_in(page, tenant.key)
    page.goto("/app/files")
    page.set_input_files("#file", DATA)
    expect(page.locator(".done")).to_be_visible()
    return page


def test_from_a_file_to_a_job_with_the_estimate_on_the_way(page: Page, database: Database) -> None:
    page.click("text=Create a job with it")
    expect(page.locator("#estimate")).to_contain_text("3 epochs")
    page.get_by_label("Epochs", exact=True).fill("7")
    page.get_by_label("Batch size").click()
    expect(page.locator("#estimate")).to_contain_text("7 epochs")
    page.get_by_text("More settings").click()
    page.get_by_label("LoRA rank").fill("0")
    page.get_by_role("button", name="Start the job").click()
    expect(page.get_by_role("alert")).to_contain_text("1 field has to change")
    expect(page.get_by_label("LoRA rank")).to_have_attribute("aria-invalid", "true")
    assert_accessible(page)
    page.get_by_label("LoRA rank").fill("4")
    page.get_by_role("button", name="Start the job").dblclick()
    expect(page).to_have_url(re.compile("/app/jobs/ftjob-"))
    with database.snapshot() as session:
        job = session.scalars(select(Job)).one()
    assert job.spec["train"]["n_epochs"] == 7
    assert job.spec["lora"]["r"] == 4


def test_with_the_keyboard_alone(page: Page, database: Database) -> None:
    page.goto("/app/new")
    page.get_by_label("Train on", exact=True).focus()
    page.keyboard.press("ArrowDown")
    page.get_by_role("button", name="Start the job").focus()
    page.keyboard.press("Enter")
    page.wait_for_url("**/app/jobs/ftjob-*")
    with database.snapshot() as session:
        assert session.scalar(select(func.count()).select_from(Job)) == 1


def test_the_preview_highlights_what_is_trained(page: Page) -> None:
    page.click("tbody a")
    expect(page.locator(".conversation mark").first).to_be_visible()
    expect(page.get_by_text("A job can be trained on it")).to_be_visible()
    assert_accessible(page)
    page.click("text=Later lines")
    expect(page.get_by_text("Line 6", exact=True)).to_be_visible()


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_pages_are_accessible(
    open_page: Callable[..., Page], tenant: Tenant, database: Database, width: int, theme: str
) -> None:
    register_shipped_base(database, shipped_world())
    with database.transaction() as session:
        job = make_job(session, tenant.project_id, suffix="mine", status="succeeded", stage="publish")
        make_adapter(session, job)
    page = open_page(width=width, theme=theme)
    sign_in(page, tenant.key)
    page.goto("/app/files")
    page.set_input_files("#file", DATA)
    page.click("text=look at it")
    expect(page.get_by_text("A job can be trained on it")).to_be_visible()
    assert_accessible(page)
    page.click("text=New job with it")
    expect(page.locator("#estimate")).to_contain_text("3 epochs")
    page.get_by_text("More settings").click()
    assert_accessible(page)
    page.goto("/app/models")
    assert_accessible(page)
