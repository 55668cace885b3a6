"""Watching a job in Chromium: it is queued, trains, succeeds; what others read and press."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect
from sqlalchemy import update

from service.adapters.release import new_model_id, release
from service.db import Database
from service.jobs import lease
from service.jobs.events import add_event
from service.jobs.metrics import add_steps
from service.jobs.states import STAGES, Stage
from service.models import Job
from tests.browser.conftest import assert_accessible, sign_in
from tests.builders import Tenant, make_job
from tests.service.dashboard.reports import make_report

STEPS = 40


class Worker:
    """Advances a job's rows as a worker would, a deed at a time."""

    def __init__(self, database: Database, job_id: str) -> None:
        self.database = database
        self.job_id = job_id
        self.claim: lease.Claim

    def begin(self) -> None:
        with self.database.transaction() as session:
            now = time.time()
            claim = lease.claim(
                session, self.job_id, owner="gpu-1:7", ttl_seconds=600.0, max_attempts=3, now=now
            )
        assert claim is not None
        self.claim = claim

    def train(self, first: int, last: int) -> None:
        losses = [2.0 * math.exp(-step / 15) + 0.3 for step in range(first, last + 1)]
        with self.database.transaction() as session:
            lease.heartbeat(session, self.claim, ttl_seconds=600.0, now=time.time())
            progress = {"step": last, "total_steps": STEPS, "loss": losses[-1], "tokens_per_second": 900.0}
            lease.write(session, self.claim, progress=progress, estimated_finish_at=time.time() + 60)
            add_steps(
                session,
                self.job_id,
                first_step=first,
                train_loss=losses,
                learning_rate=[1e-4] * len(losses),
                tokens_per_second=[900.0] * len(losses),
                valid_loss=[*[None] * (len(losses) - 1), losses[-1] + 0.1],
                train_mean_token_accuracy=[0.5] * len(losses),
            )

    def finish(self, stage: Stage) -> None:
        with self.database.transaction() as session:
            lease.finish_stage(session, self.claim, stage, output={}, now=time.time())

    def publish(self) -> None:
        with self.database.transaction() as session:
            release(
                session,
                self.claim,
                model_id=new_model_id(session.get_one(Job, self.job_id)),
                storage_key="adapters/x",
                num_bytes=4,
                sha256="c" * 64,
                safety_report=make_report(),
                now=time.time(),
            )


def status(page: Page) -> str:
    return page.locator("[data-status]").inner_text()


def test_a_job_is_watched_to_its_end_without_a_reload(
    open_page: Callable[..., Page], database: Database, tenant: Tenant, job_id: str
) -> None:
    page = open_page(tolerate=(404,))
    sign_in(page, tenant.key)
    page.goto(f"/app/jobs/{job_id}")
    page.evaluate("window.notReloaded = true")
    expect(page.locator("[data-status]")).to_have_text("queued")
    expect(page.get_by_text("No worker of this server is there now")).to_be_visible()

    worker = Worker(database, job_id)
    worker.begin()
    worker.finish(Stage.PREPARE)
    worker.train(1, 10)
    expect(page.locator("[data-status]")).to_have_text("running")
    loss = page.locator('[data-plot="train_loss"]')
    expect(loss).to_have_attribute("data-points", "10")
    expect(loss.locator("canvas")).to_be_visible()
    expect(page.get_by_text("Step 10 of 40 of this stage, 25 %")).to_be_visible()
    expect(page.locator("#events li").first).to_contain_text("Stage prepare finished")
    expect(page.locator("#attempts tbody tr")).to_have_count(1)
    height = page.evaluate("document.querySelector('[data-curve]').offsetHeight")

    worker.train(11, 40)
    expect(loss).to_have_attribute("data-points", "40")
    assert page.evaluate("document.querySelector('[data-curve]').offsetHeight") == height, "a shift"
    page.get_by_text("The same in figures").click()
    expect(page.locator("[data-curve-table] tr")).to_have_count(12)
    expect(page.locator("[data-curve-table] tr").last).to_contain_text("0.439")
    assert_accessible(page)

    for stage in STAGES[1:-1]:
        worker.finish(stage)
    worker.publish()
    expect(page.locator("[data-status]")).to_have_text("succeeded")
    expect(page.locator("[data-verdict]")).to_have_text("passed")
    expect(page.get_by_role("link", name="Download adapter")).to_be_visible()
    expect(page.locator("#attempts")).to_contain_text("prepare")
    assert page.locator("#events li").filter(has_text="successfully completed").count() == 1
    assert page.evaluate("window.notReloaded")

    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.wait_for_timeout(3500)
    assert asked == [], "an ended job's page asks no more"


def test_an_operator_watches_too_and_presses_buttons(
    open_page: Callable[..., Page], database: Database, operator_key: str, job_id: str
) -> None:
    page = open_page(tolerate=(404,))
    sign_in(page, operator_key)
    page.goto(f"/dashboard/jobs/{job_id}")
    page.get_by_role("button", name="Pause").click()
    expect(page.locator("[data-status]")).to_have_text("paused")
    page.get_by_role("button", name="Resume").click()
    expect(page.locator("[data-status]")).to_have_text("queued")
    page.once("dialog", lambda dialog: dialog.dismiss())
    page.get_by_role("button", name="Cancel").click()
    assert status(page) == "queued", "it asks first"
    page.once("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator("[data-status]")).to_have_text("cancelled")
    expect(page.locator("#events")).to_contain_text("An operator cancelled the job")
    page.get_by_role("button", name="Run again").click()
    expect(page.locator("[data-status]")).to_have_text("queued")
    assert page.url.rsplit("/", 1)[1] != job_id


def test_an_operator_releases_with_a_reason(
    open_page: Callable[..., Page], database: Database, tenant: Tenant, operator_key: str
) -> None:
    with database.transaction() as session:
        gated = make_job(
            session,
            tenant.project_id,
            status="failed",
            stage="sanitize",
            error_code="safety_gate_failed",
            error_message="no strength met the gate",
            finished_at=time.time(),
            stage_outputs={"train": {"prefix": "private/x", "adapter_sha256": "a" * 64}},
            safety_report=make_report(passed=False),
        ).id
    page = open_page(tolerate=(404,))
    sign_in(page, operator_key)
    page.goto(f"/dashboard/jobs/{gated}")
    assert_accessible(page)
    page.get_by_label("Why this adapter may leave").fill("asked for by the red team")
    page.once("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Release with this reason").click()
    expect(page.get_by_text("gate waived by an operator")).to_be_visible()
    expect(page.locator("#events")).to_contain_text("asked for by the red team")


def test_a_button_pressed_too_late_says_so(
    open_page: Callable[..., Page], database: Database, tenant: Tenant, job_id: str
) -> None:
    page = open_page(tolerate=(400, 404))
    sign_in(page, tenant.key)
    page.goto(f"/app/jobs/{job_id}")
    with database.transaction() as session:
        session.execute(update(Job).where(Job.id == job_id).values(status="failed", finished_at=1.0))
    page.get_by_role("button", name="Pause").click()
    expect(page.get_by_role("alert")).to_contain_text("has already failed")
    expect(page.locator("[data-status]")).to_have_text("failed")


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_page_is_accessible(
    open_page: Callable[..., Page],
    database: Database,
    tenant: Tenant,
    operator_key: str,
    job_id: str,
    width: int,
    theme: str,
) -> None:
    worker = Worker(database, job_id)
    worker.begin()
    worker.finish(Stage.PREPARE)
    worker.train(1, 40)
    with database.transaction() as session:
        session.execute(
            update(Job).where(Job.id == job_id).values(safety_report=make_report(), suffix="long-" * 8)
        )
        for number in range(20):
            add_event(session, job_id, f"a warning {number}", now=time.time(), level="warn")
    for key, root in ((tenant.key, "/app"), (operator_key, "/dashboard")):
        page = open_page(width=width, theme=theme, tolerate=(404,))
        sign_in(page, key)
        page.goto(f"{root}/jobs/{job_id}")
        expect(page.locator('[data-plot="train_loss"] canvas')).to_be_visible()
        for details in page.locator("main details").all():
            details.evaluate("(each) => { each.open = true; }")
        assert_accessible(page)
    page.get_by_role("link", name="Older").click()
    expect(page.locator("#events li")).to_have_count(22)


def test_plots_follow_the_theme_and_the_window(
    open_page: Callable[..., Page], database: Database, tenant: Tenant, job_id: str
) -> None:
    worker = Worker(database, job_id)
    worker.begin()
    worker.train(1, 40)
    page = open_page(tolerate=(404,))
    sign_in(page, tenant.key)
    page.goto(f"/app/jobs/{job_id}")
    canvas = page.locator('[data-plot="train_loss"] canvas')
    expect(canvas).to_be_visible()
    pixels = "(canvas) => canvas.toDataURL()"
    light = canvas.evaluate(pixels)
    page.get_by_role("button", name="Switch between light and dark").click()
    expect(canvas).to_have_count(1)
    assert canvas.evaluate(pixels) != light
    wide = canvas.evaluate("(canvas) => canvas.style.width")
    page.set_viewport_size({"width": 390, "height": 800})
    expect(canvas).not_to_have_css("width", wide)
    assert_accessible(page)


def test_without_javascript_it_can_be_read(
    open_page: Callable[..., Page], database: Database, tenant: Tenant, job_id: str
) -> None:
    worker = Worker(database, job_id)
    worker.begin()
    worker.train(1, 40)
    signed_in = open_page(tolerate=(404,))
    sign_in(signed_in, tenant.key)
    browser = signed_in.context.browser
    assert browser is not None
    context = browser.new_context(java_script_enabled=False, storage_state=signed_in.context.storage_state())
    try:
        page = context.new_page()
        page.goto(signed_in.url.replace("/app", f"/app/jobs/{job_id}"))
        expect(page.locator('[data-plot="train_loss"] polyline')).to_be_visible()
        expect(page.get_by_text("Step 40 of 40")).to_be_visible()
        page.get_by_role("button", name="Pause").click()
        expect(page.get_by_text("It was asked to pause")).to_be_visible()
    finally:
        context.close()
