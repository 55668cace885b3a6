"""The page of one job without JavaScript, on both databases: what each kind of visitor reads."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from hashlib import sha256
from typing import Any

import pytest

from service import auth
from service.dashboard import job_view
from service.db import Database
from service.jobs import attempts, lease
from service.jobs.attempts import ExitReason
from service.jobs.events import add_event
from service.jobs.metrics import add_steps
from service.jobs.states import Stage
from service.models import Job
from service.scheduling.workers import Kind, announce
from service.scopes import Scope
from service.storage import Storage
from tests.builders import (
    Tenant,
    limit_running,
    make_adapter,
    make_adapter_file,
    make_checkpoint,
    make_file,
    make_job,
    make_queued_job,
    make_tenant,
)
from tests.service.dashboard.conftest import Browser
from tests.service.dashboard.reports import make_report

RUNNING = {
    "status": "running",
    "stage": "train",
    "suffix": "support",
    "started_at": 50.0,
    "stage_seconds": {"prepare": 31.0},
    "lease_owner": "gpu-07:4412",
    "fencing_number": 2,
    "attempt_count": 2,
    "progress": {"step": 212, "total_steps": 600, "loss": 0.4231, "tokens_per_second": 5231.0},
}


def job(database: Database, tenant: Tenant, **columns: Any) -> str:
    now = time.time()
    with database.transaction() as session:
        made = make_job(session, tenant.project_id, **columns)
        if made.status == "running":
            made.stage_began_at, made.lease_expires_at = now - 90, now + 60
            made.estimated_finish_at = now + 125
        add_event(session, made.id, "Created fine-tuning job", now=now)
        return made.id


def test_a_running_job(user: Browser, database: Database, tenant: Tenant) -> None:
    job_id = job(database, tenant, **RUNNING)
    with database.transaction() as session:
        add_steps(
            session, job_id, first_step=1, train_loss=[2.0, 1.5], learning_rate=[1e-4, 5e-5],
            tokens_per_second=[10.0, 11.0],
        )  # fmt: skip
    page = user.get(f"/app/jobs/{job_id}")
    assert page.status_code == 200
    text = " ".join(re.sub(r"<[^>]+>", " ", page.text).split())
    for said in (
        "support running",
        "Check the files 31 s Train running, 1 min",
        "Step 212 of 600 of this stage, 35 %",
        "5,231 tokens per second",
        "0.4231 training loss",
        "left, as estimated",
        "From 2 at step 1 to 1.5 at step 2",
        "Created fine-tuning job",
        "Everything is as this base model has it.",
    ):
        assert said in text, said
    assert 'hx-trigger="every 3s"' in page.text
    assert "<polyline" in page.text
    assert "gpu-07" not in page.text


def test_an_operator_reads_more(operator: Browser, database: Database, tenant: Tenant) -> None:
    job_id = job(database, tenant, **RUNNING)
    with database.transaction() as session:
        attempts.begin(session, job_id, 1, worker="gpu-03:9", stage=Stage.PREPARE, now=10.0)
        reason, tail = ExitReason.DIED, "Traceback: <secret>"
        attempts.end(
            session, job_id, 1, reason=reason, stage=Stage.TRAIN, now=40.0, exit_code=-9, log_tail=tail
        )
        attempts.begin(session, job_id, 2, worker="gpu-07:4412", stage=Stage.TRAIN, now=50.0)
    text = operator.get(f"/dashboard/jobs/{job_id}").text
    assert "gpu-07:4412" in text
    assert "gpu-03:9" in text
    assert "Traceback: &lt;secret&gt;" in text
    assert "its process was ended by SIGKILL; the machine may have run out of memory" in text
    assert "prepare to train" in text
    assert tenant.project_id in text
    assert "train.jsonl" not in text, "operators see figures of uploads"


def test_an_owner_sees_attempts_but_no_worker_and_no_log(
    user: Browser, database: Database, tenant: Tenant
) -> None:
    job_id = job(database, tenant, **RUNNING, log_tail="secret of the machine")
    with database.transaction() as session:
        attempts.begin(session, job_id, 1, worker="gpu-03:9", stage=Stage.PREPARE, now=10.0)
        reason, tail = ExitReason.LOST_LEASE, "secret of the machine"
        attempts.end(session, job_id, 1, reason=reason, stage=Stage.TRAIN, now=40.0, log_tail=tail)
    for path in ("", "/live", "/events", "/metrics.json"):
        text = user.get(f"/app/jobs/{job_id}{path}").text
        assert "secret" not in text
        assert "gpu-0" not in text
    assert "its worker stopped answering and lost the job" in user.get(f"/app/jobs/{job_id}").text


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"status": "validating_files"}, "Its files are being checked."),
        ({"status": "paused", "stage": "train"}, "waits until it is resumed"),
        ({"status": "queued", "queued_at": 1.0}, "No worker of this server is there now"),
    ],
    ids=lambda value: value.get("status") if isinstance(value, dict) else "",
)
def test_why_nothing_happens(
    user: Browser, database: Database, tenant: Tenant, columns: dict[str, Any], said: str
) -> None:
    job(database, tenant, **RUNNING)
    job_id = job(database, tenant, **columns)
    assert said in user.get(f"/app/jobs/{job_id}").text


def test_a_job_held_by_the_quota(user: Browser, database: Database, tenant: Tenant) -> None:
    job(database, tenant, **RUNNING)
    job_id = job(database, tenant, status="queued", queued_at=1.0)
    with database.transaction() as session:
        announce(session, Kind(), now=time.time())
        limit_running(session, tenant.project_id, 1)
    assert "This project runs 1 of the 1 jobs" in user.get(f"/app/jobs/{job_id}").text


def test_a_place_in_the_queue(user: Browser, database: Database, tenant: Tenant) -> None:
    with database.transaction() as session:
        announce(session, Kind(), now=time.time())
        ids = [make_queued_job(session, tenant.project_id, queued_at=float(at)).id for at in range(3)]
    assert "In the queue at place 3." in user.get(f"/app/jobs/{ids[2]}").text


def released(database: Database, tenant: Tenant, storage: Storage) -> str:
    job_id = job(
        database,
        tenant,
        status="succeeded",
        stage="publish",
        safety_report=make_report(),
        started_at=10.0,
        finished_at=4700.0,
        trained_tokens=4056170,
        stage_outputs={"prepare": {"num_conversations": 4213, "num_tokens": 811234}},
    )
    with database.transaction() as session:
        row = session.get_one(Job, job_id)
        adapter = make_adapter(session, row, sha256=sha256(b"tar!").hexdigest())
        inside = {"bytes": 2, "offset": 1, "sha256": sha256(b"ar").hexdigest()}
        make_adapter_file(session, adapter, name="README.md", **inside)
        read = {"sha256": sha256(b"step\n").hexdigest()}
        curve = make_file(session, tenant.project_id, filename="step_metrics.csv", bytes=5, **read)
        row.result_file_ids = [curve.id]
        storage.put(adapter.storage_key, b"tar!")
        storage.put(curve.storage_key, b"step\n")
    return job_id


def test_a_job_that_succeeded(user: Browser, database: Database, tenant: Tenant, storage: Storage) -> None:
    job_id = released(database, tenant, storage)
    page = user.get(f"/app/jobs/{job_id}").text
    assert "every 3s" not in page, "nothing changes any more"
    for said in ("Passed the safety gate", "3.9 %", "before 77.7 %", "random mask", "4,056,170", "4,213"):
        assert said in page, said
    for drawing in ("report-intervals", "report-frontier", "report-sparsity"):
        assert f'id="{drawing}-title"' in page
    assert "2" * 64 in page, "hashes"

    assert user.get(f"/app/jobs/{job_id}/adapter").content == b"tar!"
    assert user.get(f"/app/jobs/{job_id}/adapter/README.md").content == b"ar"
    (result,) = re.findall(rf"/app/jobs/{job_id}/results/([\w-]+)", page)
    answer = user.get(f"/app/jobs/{job_id}/results/{result}")
    assert answer.content == b"step\n"
    assert "step_metrics.csv" in answer.headers["content-disposition"]
    assert user.get(f"/app/jobs/{job_id}/results/file-none").status_code == 404

    report = user.get(f"/app/jobs/{job_id}/report")
    assert "What this report does not promise" in report.text
    assert "content-disposition" not in report.headers
    saved = user.get(f"/app/jobs/{job_id}/report?download=true").headers["content-disposition"]
    assert saved == f'attachment; filename="safety-report-{job_id}.html"'


def test_an_operator_reads_the_report_and_takes_no_weights(
    operator: Browser, database: Database, tenant: Tenant, storage: Storage
) -> None:
    job_id = released(database, tenant, storage)
    page = operator.get(f"/dashboard/jobs/{job_id}").text
    assert "Passed the safety gate" in page
    assert operator.get(f"/dashboard/jobs/{job_id}/report").status_code == 200
    assert f"/dashboard/jobs/{job_id}/adapter" not in page
    assert operator.get(f"/dashboard/jobs/{job_id}/adapter").status_code == 404
    assert f"/dashboard/jobs/{job_id}/results" not in page


def test_a_job_without_a_report(user: Browser, database: Database, tenant: Tenant) -> None:
    job_id = job(
        database, tenant, status="failed", stage="train", error_code="non_finite_loss",
        error_message="the loss is <not> a number", finished_at=1.0,
    )  # fmt: skip
    page = user.get(f"/app/jobs/{job_id}").text
    assert "the loss is &lt;not&gt; a number" in page
    assert "You can change something about it" in page
    assert "so there is none. Nothing was released." in page
    assert user.get(f"/app/jobs/{job_id}/report").status_code == 404


def test_lineage_and_checkpoints(user: Browser, database: Database, tenant: Tenant) -> None:
    with database.transaction() as session:
        first = make_job(session, tenant.project_id, status="failed", finished_at=2.0, created_at=1.0)
        checkpoint = make_checkpoint(session, first, step=60)
        second = make_job(
            session,
            tenant.project_id,
            cloned_from=first.id,
            from_checkpoint=checkpoint.id,
            starts_from={"job_id": first.id},
        )
    page = user.get(f"/app/jobs/{first.id}").text
    assert f'href="/app/jobs/{second.id}"' in page
    assert "60" in page
    page = user.get(f"/app/jobs/{second.id}").text
    assert page.count(f'href="/app/jobs/{first.id}"') == 2
    assert checkpoint.id in page
    assert "data-curve" not in page, "it trains nothing"


def test_settings_that_differ_are_marked(user: Browser, database: Database, tenant: Tenant) -> None:
    job_id = job(database, tenant)
    with database.transaction() as session:
        row = session.get_one(Job, job_id)
        train = {**row.spec["train"], "n_epochs": 5, "early_stopping": {"patience": 2, "min_delta": 0.0}}
        row.spec = {"lora": {**row.spec["lora"], "r": 32}, "train": train}
    text = " ".join(re.sub(r"<[^>]+>", " ", user.get(f"/app/jobs/{job_id}").text).split())
    assert "Epochs 5 instead of 3" in text
    assert "Rank of the adapter 32 instead of 16" in text
    assert "Early stopping patience 2, min delta 0 instead of no" in text
    assert text.count("changed") == 3


def test_old_jobs_show_what_they_have(
    user: Browser, operator: Browser, database: Database, tenant: Tenant
) -> None:
    job_id = job(
        database, tenant, status="succeeded", stage="publish", attempt_count=1, finished_at=5.0,
        spec={"lora": {"r": 8}, "train": {}}, safety_report={"alpha": 0.1},
    )  # fmt: skip
    for browser, root in ((user, "/app"), (operator, "/dashboard")):
        page = browser.get(f"{root}/jobs/{job_id}")
        assert page.status_code == 200
        assert "No verdict is recorded" in page.text
        assert "older than this list" in page.text


# Watching.


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


# Who may see it.


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
