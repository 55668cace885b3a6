"""The page in a real Chromium: both themes, a phone and a desk, paper, and somebody who cannot see it."""

from __future__ import annotations

from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page

from service.reports.facts import FileFacts, JobFacts
from service.reports.rendering import render_page
from tests.service.reports.builders import facts, refused_report, report, waived_report

pytestmark = pytest.mark.slow

THEMES = ("light", "dark")
WIDTHS = (1280, 390)
PAGES = {
    "passed": render_page(report(), facts(metadata={"long": "x" * 512}, suffix="y" * 64)),
    "waived": render_page(waived_report("z" * 300), facts()),
    "refused": render_page(
        refused_report(), facts(status="failed", released=False, error_code="safety_gate_failed")
    ),
    "bare": render_page({}, JobFacts("ftjob-1", "running", "b", "c" * 64, FileFacts("file-1"))),
}


@pytest.fixture(params=PAGES)
def file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """As somebody who downloaded it opens it."""
    path = tmp_path / "report.html"
    path.write_text(PAGES[request.param], encoding="utf-8")
    return path


def opened(browser: Browser, file: Path, *, theme: str, width: int) -> tuple[Page, list[str]]:
    """And what it asked for, or complained about."""
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=theme)
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: said.append(request.url))
    page.goto(file.as_uri())
    return page, said


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_it_fits_and_everybody_can_read_it(browser: Browser, file: Path, theme: str, width: int) -> None:
    page, said = opened(browser, file, theme=theme, width=width)
    assert said == [file.as_uri()], "only the page itself"
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    # Words in the drawings, too, stay inside their frame.
    outside = page.evaluate(
        """() => [...document.querySelectorAll('figure svg[role=img] text')].filter(text => {
            const frame = text.closest('figure').getBoundingClientRect(), box = text.getBoundingClientRect();
            return box.left < frame.left || box.right > frame.right || box.bottom > frame.bottom;
        }).map(text => text.textContent)"""
    )
    assert outside == []
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == {"light": "rgb(255, 255, 255)", "dark": "rgb(15, 20, 25)"}[theme]
    for details in page.locator("details").all():
        details.evaluate("element => { element.open = true }")
    audit = Axe().run(page).response
    assert len(audit["passes"]) > 10, "it looked"
    serious = [
        (violation["id"], [node["html"] for node in violation["nodes"]][:3])
        for violation in audit["violations"]
        if violation["impact"] in ("serious", "critical", "moderate")
    ]
    assert serious == []
    page.close()


def test_on_paper_nothing_is_folded_away(browser: Browser, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    file.write_text(PAGES["passed"], encoding="utf-8")
    page, _ = opened(browser, file, theme="dark", width=1280)
    cell = page.locator("details td").first
    assert not cell.evaluate("element => element.checkVisibility()")
    page.emulate_media(media="print", color_scheme="dark")
    assert cell.evaluate("element => element.checkVisibility()")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    printed = page.pdf(format="A4", print_background=True)
    assert printed.startswith(b"%PDF-")
    assert 4 <= printed.count(b"/Type /Page\n") <= 12
    page.close()


def test_the_keyboard_reaches_what_scrolls(browser: Browser, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    file.write_text(PAGES["passed"], encoding="utf-8")
    page, _ = opened(browser, file, theme="light", width=390)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "scroll"
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.close()
