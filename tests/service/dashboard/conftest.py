"""A browser without JavaScript: keeps cookies, reads the token out of pages, sends forms."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from service.app import create_app
from service.db import Database
from service.operators import create_operator_key
from service.settings import Settings
from service.storage import Storage
from tests.builders import Tenant


class Browser:
    """Somebody's browser at the application. `get` and `post` answer with httpx responses; redirects are not
    followed, so that tests see them."""

    def __init__(self, client: TestClient) -> None:
        self.client = client

    def get(self, path: str, **options: Any) -> Any:
        return self.client.get(path, follow_redirects=False, **options)

    def post(self, path: str, data: dict[str, Any] | None = None, *, token: str | None = None) -> Any:
        """With the token of the page, as a form of this site would send it."""
        filled = {"csrf": self.token() if token is None else token, **(data or {})}
        return self.client.post(path, data=filled, follow_redirects=False)

    def token(self) -> str:
        found = re.search(r'"x-csrf-token": "([0-9a-f]*)"', self.get("/signin").text)
        assert found is not None, "every page carries the token"
        return found.group(1)

    def sign_in(self, key: str, *, next: str = "") -> Any:
        return self.client.post("/signin", data={"key": key, "next": next}, follow_redirects=False)


@pytest.fixture
def app(settings: Settings, database: Database, storage: Storage) -> FastAPI:
    return create_app(settings, database=database, storage=storage)


@pytest.fixture
def open_browser(app: FastAPI) -> Iterator[Callable[[], Browser]]:
    """Makes browsers that share nothing but the application."""
    with ExitStack() as stack:
        first = stack.enter_context(TestClient(app, base_url="http://testserver"))

        def opened() -> Browser:
            client = TestClient(app, base_url="http://testserver")
            client.portal = first.portal
            client.app_state.update(first.app_state)
            return Browser(client)

        yield opened


@pytest.fixture
def browser(open_browser: Callable[[], Browser]) -> Browser:
    return open_browser()


@pytest.fixture
def user(browser: Browser, tenant: Tenant) -> Browser:
    assert browser.sign_in(tenant.key).status_code == 303
    return browser


@pytest.fixture
def operator_key(database: Database) -> str:
    with database.transaction() as session:
        _, key = create_operator_key(session, name="tests", now=time.time())
    return key


@pytest.fixture
def operator(open_browser: Callable[[], Browser], operator_key: str) -> Browser:
    browser = open_browser()
    assert browser.sign_in(operator_key).status_code == 303
    return browser
