from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from service.db import Database
from tests.browser.conftest import assert_accessible, sign_in
from tests.builders import Tenant, dataset, make_file, make_job, make_tenant

DROP = """([name, text]) => {
  const transfer = new DataTransfer();
  transfer.items.add(new File([text], name));
  for (const kind of ["dragenter", "dragover", "drop"])
    document.body.dispatchEvent(
      new DragEvent(kind, {dataTransfer: transfer, bubbles: true, cancelable: true}));
}"""


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / "train.jsonl"
    path.write_bytes(dataset(12))
    return path


def test_choosing_a_file_uploads_it(open_page: Callable[..., Page], tenant: Tenant, good: Path) -> None:
    page = open_page()
    sign_in(page, tenant.key)
    page.click("nav >> text=Files")
    page.set_input_files("#file", good)
    expect(page.locator(".done")).to_contain_text("train.jsonl is uploaded: 12 conversations")
    expect(page.locator("tbody tr")).to_have_count(1)
    assert_accessible(page)


def test_dropping_a_broken_file_shows_its_lines(open_page: Callable[..., Page], tenant: Tenant) -> None:
    page = open_page(tolerate=(400,))
    sign_in(page, tenant.key)
    page.goto("/app/files")
    lines = dataset(12).decode().splitlines()
    lines[6] = '{"messages": "nothing"}'
    page.evaluate(DROP, ["bad.jsonl", "\n".join(lines)])
    problem = page.get_by_role("alert")
    expect(problem).to_contain_text("nothing was stored")
    expect(problem.locator("tbody td").first).to_have_text("7")
    expect(problem).to_be_focused()
    assert_accessible(page)
    page.reload()
    expect(page.get_by_text("No files yet")).to_be_visible()


def test_without_scripts_the_form_does_it(
    chromium: Any, site: str, tenant: Tenant, good: Path, tmp_path: Path
) -> None:
    context = chromium.new_context(base_url=site, java_script_enabled=False)
    try:
        page = context.new_page()
        sign_in(page, tenant.key)
        page.goto("/app/files")
        page.set_input_files("#file", good)
        page.click("button:text('Upload')")
        expect(page.locator(".done")).to_contain_text("12 conversations")
        bad = tmp_path / "bad.jsonl"
        bad.write_text("{")
        page.set_input_files("#file", bad)
        page.click("button:text('Upload')")
        expect(page.get_by_role("alert")).to_contain_text("nothing was stored")
    finally:
        context.close()


def test_deleting_asks_first(open_page: Callable[..., Page], tenant: Tenant, database: Database) -> None:
    with database.transaction() as session:
        make_file(session, tenant.project_id, filename="old.jsonl")
    page = open_page()
    sign_in(page, tenant.key)
    page.goto("/app/files")
    page.once("dialog", lambda dialog: dialog.dismiss())
    page.click("text=Delete >> nth=-1")
    expect(page.get_by_text("old.jsonl")).to_be_visible()
    page.once("dialog", lambda dialog: dialog.accept())
    page.click("text=Delete >> nth=-1")
    expect(page.get_by_text("No files yet")).to_be_visible()


def test_other_projects_see_nothing(
    open_page: Callable[..., Page], tenant: Tenant, database: Database
) -> None:
    stranger = make_tenant(database, name="Stranger")
    with database.transaction() as session:
        make_file(session, stranger.project_id, filename="secret.jsonl")
    page = open_page()
    sign_in(page, tenant.key)
    page.goto("/app/files")
    expect(page.get_by_text("secret.jsonl")).to_have_count(0)


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_pages_are_accessible(
    open_page: Callable[..., Page], tenant: Tenant, database: Database, width: int, theme: str
) -> None:
    with database.transaction() as session:
        make_file(session, tenant.project_id, filename="a-rather-long-name-for-a-file-of-training-data.jsonl")
        make_job(session, tenant.project_id, suffix="mine", status="succeeded", stage="publish")
        progress = {"step": 3, "total_steps": 9}
        make_job(
            session, tenant.project_id, suffix="busy", status="running", stage="train", progress=progress
        )
    page = open_page(width=width, theme=theme)
    sign_in(page, tenant.key)
    for path in ("/app", "/app/files", "/app?status=failed"):
        page.goto(path)
        assert_accessible(page)
