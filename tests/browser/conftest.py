"""Real Chromium at a real server. Skipped where no browser is installed, unless REQUIRE_BROWSER is set (CI).

A test fails when a page logs an error, throws, or asks for anything outside this server.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, sync_playwright

from service.db import Database
from service.operators import create_operator_key
from tests.builders import Tenant, make_queued_job

# Chromium's own calls home only fail here, many at a time; and root has no sandbox to start.
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
NAMES = ("chromium", "chromium-browser", "google-chrome")


def chromium_path() -> Path:
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is not None:
        return Path(found)
    if os.environ.get("REQUIRE_BROWSER"):
        raise AssertionError(f"REQUIRE_BROWSER is set and none of {', '.join(NAMES)} is installed")
    pytest.skip(f"none of {', '.join(NAMES)} is installed (Debian: apt-get install chromium)")


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """Of a module and not of the run: while it is open, this thread counts as running an event loop."""
    path = chromium_path()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def database_url(sqlite_url: str) -> str:
    """What a page shows does not depend on the database; queries are tested on both elsewhere."""
    return sqlite_url


@pytest.fixture
def site(api_url: str) -> str:
    """The URL of the application on a free loopback port."""
    return api_url.removesuffix("/v1")


@pytest.fixture
def open_page(chromium: Browser, site: str) -> Iterator[Callable[..., Page]]:
    """Makes pages with cookies of their own. `tolerate`: statuses that a test provokes; Chromium logs them
    as errors of the page."""
    complaints: list[str] = []
    contexts = []

    def opened(*, width: int = 1280, theme: Any = "light", tolerate: tuple[int, ...] = ()) -> Page:
        context = chromium.new_context(
            base_url=site, viewport={"width": width, "height": 900}, color_scheme=theme
        )
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(20_000)

        def on_console(message: Any) -> None:
            # Chromium's words, and htmx's.
            said = [f"{words} {status}" for words in ("status of", "Error Code") for status in tolerate]
            provoked = any(words in message.text for words in said)
            if message.type in ("error", "warning") and not provoked:
                complaints.append(f"console: {message.text}")

        def on_request(request: Any) -> None:
            if urlsplit(request.url).netloc != urlsplit(site).netloc and not request.url.startswith("data:"):
                complaints.append(f"left the host: {request.url}")

        page.on("console", on_console)
        page.on("pageerror", lambda error: complaints.append(f"thrown: {error}"))
        page.on("request", on_request)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not complaints, complaints


@pytest.fixture
def operator_key(database: Database) -> str:
    with database.transaction() as session:
        _, key = create_operator_key(session, name="tests", now=time.time())
    return key


@pytest.fixture
def job_id(database: Database, tenant: Tenant) -> str:
    with database.transaction() as session:
        return make_queued_job(session, tenant.project_id, suffix="watched").id


def sign_in(page: Page, key: str) -> None:
    page.goto("/signin")
    page.fill("#key", key)
    page.click("text=Sign in >> nth=-1")
    page.wait_for_url(lambda url: "/signin" not in url)


def assert_accessible(page: Page) -> None:
    """No serious violation by axe-core, and nothing wider than the window."""
    found = [
        f"{violation['id']}: {violation['help']} at {[node['target'] for node in violation['nodes']][:3]}"
        for violation in Axe().run(page).response["violations"]
        if violation["impact"] in ("serious", "critical")
    ]
    assert not found, found
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width <= page.viewport_size["width"], f"{page.url} is {width} px wide"  # type: ignore[index]
