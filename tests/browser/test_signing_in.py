from __future__ import annotations

from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import assert_accessible, sign_in
from tests.builders import Tenant


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_page_is_accessible(open_page: Callable[..., Page], width: int, theme: str) -> None:
    page = open_page(width=width, theme=theme)
    page.goto("/signin")
    assert_accessible(page)


def test_a_wrong_key_says_so_and_another_works(open_page: Callable[..., Page], tenant: Tenant) -> None:
    page = open_page(tolerate=(401,))
    page.goto("/")
    page.fill("#key", "sk-wrong")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("This key is not valid")
    assert_accessible(page)
    page.fill("#key", tenant.key)
    page.keyboard.press("Enter")
    page.wait_for_url("**/app")


def test_signing_out(open_page: Callable[..., Page], operator_key: str) -> None:
    page = open_page(tolerate=(404,))
    sign_in(page, operator_key)
    page.click("text=Sign out")
    page.wait_for_url("**/signin")
    page.goto("/dashboard")
    page.wait_for_url("**/signin?next=/dashboard")


def test_the_theme_can_be_switched_and_is_remembered(open_page: Callable[..., Page]) -> None:
    page = open_page(theme="light")
    page.goto("/signin")
    ground = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(ground)
    page.get_by_role("button", name="Switch between light and dark").click()
    dark = page.evaluate(ground)
    assert dark != light
    page.reload()
    assert page.evaluate(ground) == dark
