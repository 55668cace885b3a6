"""What a job's page is told while it is open, and who may open it."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any

import pytest

from service import auth
from service.dashboard import job_view
from service.db import Database
from service.jobs import lease
from service.jobs.events import add_event
from service.jobs.metrics import add_steps
from service.jobs.states import Stage
from service.models import Job
from service.scopes import Scope
from service.storage import Storage
from tests.builders import (
    Tenant,
    make_queued_job,
    make_tenant,
)
from tests.service.dashboard.conftest import Browser
from tests.service.dashboard.test_job_page import RUNNING, job, released


def live(browser: Browser, job_id: str, seen: str, root: str = "/app") -> Any:
    return browser.get(f"{root}/jobs/{job_id}/live", params={"seen": seen}, headers={"hx-request": "true"})


def version(text: str) -> str:
    (found,) = re.findall(r'data-event="([^"]*)"', text)
    return str(found)


def test_a_watcher_gets_what_changed(user: Browser, database: Database, tenant: Tenant) -> None:
    with database.transaction() as session:
        job_id = make_queued_job(session, tenant.project_id).id
        claim = lease.claim(session, job_id, owner="w", ttl_seconds=60.0, max_attempts=3, now=time.time())
    assert claim is not None
    seen = version(user.get(f"/app/jobs/{job_id}").text)
    assert live(user, job_id, seen).status_code == 204

    with database.transaction() as session:
        lease.write(session, claim, progress={"step": 3, "total_steps": 9})
    answer = live(user, job_id, seen)
    assert "Step 3 of 9" in answer.text
    assert "hx-swap-oob" not in answer.text, "only a step: the rest stays as it is"
    seen = version(answer.text)
    assert live(user, job_id, seen).status_code == 204

    with database.transaction() as session:
        lease.finish_stage(session, claim, Stage.PREPARE, output={"num_conversations": 7}, now=time.time())
    answer = live(user, job_id, seen)
    assert answer.text.count("Stage prepare finished, train started") == 2, "once shown, once read aloud"
    assert "Fine-tuning job started" not in answer.text, "it was seen"
    assert "Conversations" in answer.text
    seen = version(answer.text)

    with database.transaction() as session:
        row = session.get_one(Job, job_id)
        row.status, row.finished_at = "cancelled", time.time()
    answer = live(user, job_id, seen)
    assert "hx-trigger" not in answer.text, "polling stops by itself"
    assert "The job is cancelled." in answer.text


@pytest.mark.parametrize("seen", ["", "nonsense", "a.b.c.d.e.f.g", "1.2.3.4.5.6.99999999999999999999", "é"])
def test_a_version_that_is_none_gets_everything(
    user: Browser, database: Database, tenant: Tenant, seen: str
) -> None:
    job_id = job(database, tenant)
    answer = live(user, job_id, seen)
    assert answer.status_code == 200
    assert 'id="safety"' in answer.text


def test_one_statement_says_that_nothing_changed(
    user: Browser, database: Database, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = job(database, tenant, **RUNNING)
    seen = version(user.get(f"/app/jobs/{job_id}").text)
    monkeypatch.setattr("service.dashboard.job_page._found", lambda *_: pytest.fail("it was read whole"))
    assert live(user, job_id, seen).status_code == 204


def test_the_version_of_a_waiting_job_changes_now_and_then() -> None:
    from service.dashboard.queries.job_page import Position

    waiting = Position("queued", "prepare", 0, None, "", 7)
    running = Position("running", "train", 1, 5, "c", 7)
    later = 1000.0 + job_view.QUEUE_BEAT_SECONDS
    assert job_view.version_of(waiting, now=1000.0) != job_view.version_of(waiting, now=later)
    assert job_view.version_of(running, now=1000.0) == job_view.version_of(running, now=later)
    assert job_view.seen_event(job_view.version_of(running, now=0.0)) == 7


def test_the_curve_behind_a_step(user: Browser, database: Database, tenant: Tenant) -> None:
    job_id = job(database, tenant, **RUNNING)
    with database.transaction() as session:
        for first, losses in ((1, [4.0, 3.0, 2.0]), (4, [1.0, 0.5]), (3, [2.5])):
            add_steps(
                session, job_id, first_step=first, train_loss=losses, learning_rate=losses,
                tokens_per_second=losses, valid_loss=[None] * (len(losses) - 1) + [9.0],
            )  # fmt: skip

    def curve(after: int) -> Any:
        return user.get(f"/app/jobs/{job_id}/metrics.json", params={"after": after}).json()

    whole = curve(0)
    assert (whole["step"], whole["train_loss"]) == ([1, 2, 3, 4, 5], [4.0, 3.0, 2.5, 1.0, 0.5])
    assert whole["valid_loss"] == [None, None, 9.0, None, 9.0]
    assert whole["attempt"] == 2
    assert (curve(3)["step"], curve(4)["train_loss"], curve(5)["step"]) == ([4, 5], [0.5], [])
    assert user.get(f"/app/jobs/{job_id}/metrics.json?after=-1").status_code == 400


def test_a_long_curve_is_thinned(user: Browser, database: Database, tenant: Tenant) -> None:
    job_id = job(database, tenant)
    losses = [1.0] * 5000
    losses[2500] = 70.0
    with database.transaction() as session:
        add_steps(
            session, job_id, first_step=1, train_loss=losses, learning_rate=losses, tokens_per_second=losses
        )  # fmt: skip
    curve = user.get(f"/app/jobs/{job_id}/metrics.json").json()
    assert len(curve["step"]) <= 600
    assert 70.0 in curve["train_loss"], "no spike disappears"


def test_events_a_page_at_a_time(user: Browser, database: Database, tenant: Tenant) -> None:
    job_id = job(database, tenant)
    with database.transaction() as session:
        for number in range(130):
            add_event(session, job_id, f"event number {number}.", now=float(number))
        add_event(session, job_id, "Step 1/9: training loss=1", now=1.0, type="metrics")
    page = user.get(f"/app/jobs/{job_id}").text
    assert "training loss=1" not in page, "figures are in the plots"
    assert page.count("event number") == 12
    (older,) = set(re.findall(rf'hx-get="(/app/jobs/{job_id}/events\?before=\d+)"', page))
    fragment = user.get(older, headers={"hx-request": "true"}).text
    assert "<html" not in fragment
    assert fragment.count("event number") == 100
    assert "event number 117." in fragment
    (older,) = set(re.findall(rf'hx-get="(/app/jobs/{job_id}/events\?before=\d+)"', fragment))
    whole = user.get(older).text
    assert "<html" in whole
    assert "event number 17." in whole
    assert "event number 18." not in whole
    assert "Nothing older than this." in user.get(f"/app/jobs/{job_id}/events?before=0").text


def test_somebody_elses_job_is_not_there(
    user: Browser, database: Database, tenant: Tenant, storage: Storage
) -> None:
    other = make_tenant(database, name="Other")
    foreign = released(database, other, storage)
    with database.snapshot() as session:
        (result,) = session.get_one(Job, foreign).result_file_ids or []
    own = job(database, tenant)
    paths = (
        "", "/live", "/events", "/metrics.json", "/report", "/adapter", "/adapter/README.md",
        f"/results/{result}",
    )  # fmt: skip
    for job_id in (foreign, "ftjob-none", "%2e%2e"):
        for path in paths:
            answer = user.get(f"/app/jobs/{job_id}{path}")
            assert answer.status_code == 404, (job_id, path)
            assert "Other" not in answer.text
    for deed in ("cancel", "pause", "resume", "retry"):
        assert user.post(f"/app/jobs/{foreign}/{deed}").status_code == 404
    assert user.get(f"/app/jobs/{own}/results/{result}").status_code == 404


def test_an_unknown_job_for_an_operator(operator: Browser) -> None:
    for path in ("", "/live", "/events", "/metrics.json", "/report"):
        assert operator.get(f"/dashboard/jobs/ftjob-none{path}").status_code == 404
    for deed in ("cancel", "retry", "nothing"):
        assert operator.post(f"/dashboard/jobs/ftjob-none/{deed}").status_code == 404
    assert operator.post("/dashboard/jobs/ftjob-none/release", {"reason": "x"}).status_code in (400, 404)


def test_users_and_operators_have_pages_of_their_own(
    user: Browser, operator: Browser, database: Database, tenant: Tenant
) -> None:
    job_id = job(database, tenant)
    assert user.get(f"/dashboard/jobs/{job_id}").status_code == 403
    assert operator.get(f"/app/jobs/{job_id}").status_code == 403


def test_a_key_that_may_only_read(
    open_browser: Callable[[], Browser], database: Database, tenant: Tenant, storage: Storage
) -> None:
    job_id = released(database, tenant, storage)
    with database.transaction() as session:
        options = {"project_id": tenant.project_id, "name": "x", "now": time.time()}
        reads = auth.create_api_key(session, **options, scopes=[Scope.JOBS_READ])[1]
        files = auth.create_api_key(session, **options, scopes=[Scope.FILES_READ])[1]
    browser = open_browser()
    browser.sign_in(reads)
    page = browser.get(f"/app/jobs/{job_id}").text
    assert "do-retry" not in page
    assert "Download adapter" not in page
    assert browser.get(f"/app/jobs/{job_id}/adapter").status_code == 403
    assert browser.post(f"/app/jobs/{job_id}/retry").status_code == 403
    browser = open_browser()
    browser.sign_in(files)
    assert browser.get(f"/app/jobs/{job_id}").status_code == 403
