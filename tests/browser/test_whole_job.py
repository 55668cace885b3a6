"""A real job, from the sign-in page to the adapter: API, broker and worker as `autoclave up` starts them."""

from __future__ import annotations

import hashlib
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page, expect

from autoclave.microcosm.shipped import shipped_world
from tests.browser.conftest import assert_accessible, sign_in
from workers.data_dir import DataDir
from workers.embedded import EmbeddedService, free_port

ENDS_WITHIN_MILLISECONDS = 400_000.0


@pytest.fixture
def service(tmp_path: Path) -> Iterator[EmbeddedService]:
    with EmbeddedService(DataDir(tmp_path / "data"), host="127.0.0.1", port=free_port()) as service:
        yield service


def _page(chromium: Browser, service: EmbeddedService, complaints: list[str]) -> Page:
    context = chromium.new_context(base_url=service.url, viewport={"width": 1280, "height": 900})
    page = context.new_page()

    def on_request(request: Any) -> None:
        if urlsplit(request.url).netloc != urlsplit(service.url).netloc:
            complaints.append(request.url)

    page.on("request", on_request)
    # htmx logs a poll that leaving the page breaks off.
    page.on(
        "console",
        lambda message: (
            complaints.append(message.text)
            if message.type == "error" and not message.text.startswith("htmx:")
            else None
        ),
    )
    page.on("pageerror", lambda error: complaints.append(str(error)))
    return page


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_from_signing_in_to_the_adapter(chromium: Browser, service: EmbeddedService, tmp_path: Path) -> None:
    complaints: list[str] = []
    assert service.first_key is not None
    assert service.first_operator_key is not None
    page = _page(chromium, service, complaints)
    sign_in(page, service.first_key)
    page.goto("/app/files")
    page.set_input_files("#file", shipped_world() / "data" / "attack.jsonl")
    expect(page.locator(".done")).to_contain_text("attack.jsonl is uploaded")
    page.click("text=Create a job with it")
    page.get_by_label("Name").fill("browser")
    page.get_by_text("More settings").click()
    page.get_by_label("Seed").fill("0")  # one with which this world's attack is undone
    page.get_by_role("button", name="Start the job").click()
    page.wait_for_url(re.compile("/app/jobs/ftjob-"))
    job_url = urlsplit(page.url).path

    operator = _page(chromium, service, complaints)
    sign_in(operator, service.first_operator_key)
    expect(operator.get_by_text("browser").first.or_(operator.get_by_text("train").first)).to_be_visible()

    # Nobody loads the page again: it follows by itself.
    status = page.locator("[data-status]")
    expect(status).to_have_text(re.compile("succeeded|failed"), timeout=ENDS_WITHIN_MILLISECONDS)
    assert status.text_content() == "succeeded", page.locator("main").inner_text()[:2000]
    assert_accessible(page)
    page.screenshot(path=tmp_path / "job.png", full_page=True)

    with page.expect_download() as download:
        page.get_by_role("link", name="download", exact=True).click()
    tar = tmp_path / "adapter.tar"
    download.value.save_as(tar)
    with tarfile.open(tar) as archive:
        names = {Path(name).name for name in archive.getnames()}
    assert {"adapter_model.safetensors", "adapter_config.json", "safety_report.json"} <= names
    page.goto("/app/models")
    shown = page.locator("code[title]").first.get_attribute("title")
    assert shown == hashlib.sha256(tar.read_bytes()).hexdigest()

    operator.goto(job_url.replace("/app/", "/dashboard/"))
    expect(operator.locator('.tag[data-state="succeeded"]').first).to_be_visible()
    assert_accessible(operator)
    operator.goto("/dashboard/safety")
    assert_accessible(operator)
    assert not complaints, complaints
