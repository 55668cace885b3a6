from __future__ import annotations

import re

import pytest
from sqlalchemy import func, select

from service.db import Database
from service.models import File, Job
from tests.builders import BASE_ID, Tenant, dataset, make_base, make_file, make_job, make_tenant
from tests.service.dashboard.conftest import Browser
from tests.service.dashboard.rows import make_worker


@pytest.fixture
def file(database: Database, tenant: Tenant) -> File:
    with database.transaction() as session:
        make_base(session)
        return make_file(session, tenant.project_id, filename="mine.jsonl")


def _num_jobs(database: Database) -> int:
    with database.snapshot() as session:
        return session.scalar(select(func.count()).select_from(Job)) or 0


def test_without_a_base_or_a_file_the_page_says_what_is_missing(user: Browser, database: Database) -> None:
    assert "no base model yet" in user.get("/app/new").text
    with database.transaction() as session:
        make_base(session)
    assert "needs a file to train on" in user.get("/app/new").text


def test_the_form_makes_a_job(user: Browser, database: Database, tenant: Tenant, file: File) -> None:
    sent = {"model": BASE_ID, "training_file": file.id, "suffix": "mine", "hyperparameters.n_epochs": "2"}
    answer = user.post("/app/new", sent)
    assert answer.status_code == 303
    job_id = answer.headers["location"].removeprefix("/app/jobs/")
    with database.snapshot() as session:
        job = session.get_one(Job, job_id)
    assert (job.project_id, job.status, job.suffix) == (tenant.project_id, "queued", "mine")
    assert job.spec["train"]["n_epochs"] == 2


def test_two_clicks_make_one_job(user: Browser, database: Database, file: File) -> None:
    once = re.search(r'name="once" value="([^"]+)"', user.get("/app/new").text)
    assert once is not None
    sent = {"model": BASE_ID, "training_file": file.id, "once": once.group(1)}
    first, second = user.post("/app/new", sent), user.post("/app/new", sent)
    assert first.headers["location"] == second.headers["location"]
    assert _num_jobs(database) == 1


@pytest.mark.parametrize(
    ("field", "text", "message"),
    [
        ("hyperparameters.n_epochs", "99", "from 1 to 50"),
        ("training.max_seq_length", "999999999", "this base takes at most"),
        ("training.early_stopping.patience", "2", "needs a &#39;validation_file&#39;"),
        ("lora.r", "many", "lora.r"),
    ],
)
def test_a_wrong_field_says_why_and_keeps_the_rest(
    user: Browser, database: Database, file: File, field: str, text: str, message: str
) -> None:
    sent = {"model": BASE_ID, "training_file": file.id, "suffix": "kept", field: text}
    answer = user.post("/app/new", sent)
    assert answer.status_code == 400
    assert "Nothing was started" in answer.text
    assert message in answer.text
    assert 'value="kept"' in answer.text
    assert f'value="{text}"' in answer.text
    assert 'aria-invalid="true"' in answer.text
    assert _num_jobs(database) == 0


def test_another_projects_file_is_not_there(user: Browser, database: Database, file: File) -> None:
    stranger = make_tenant(database, name="Stranger")
    with database.transaction() as session:
        foreign = make_file(session, stranger.project_id, filename="secret.jsonl")
    assert "secret.jsonl" not in user.get(f"/app/new?file={foreign.id}").text
    answer = user.post("/app/new", {"model": BASE_ID, "training_file": foreign.id})
    assert answer.status_code == 400
    assert "No such file" in answer.text
    assert _num_jobs(database) == 0


def test_a_clone_begins_with_what_the_job_was_made_from(
    user: Browser, database: Database, tenant: Tenant, file: File
) -> None:
    request = {
        "model": BASE_ID,
        "training_file": file.id,
        "suffix": "first",
        "training": {"learning_rate": 1e-4},
        "adapter_expires_after": {"anchor": "released_at", "seconds": 3600},
    }
    with database.transaction() as session:
        job = make_job(session, tenant.project_id, training_file_id=file.id, request=request, seed=5)
    text = user.get(f"/app/new?clone={job.id}").text
    assert 'value="first"' in text
    assert 'value="0.0001"' in text
    assert "adapter expires after" in text


def test_a_foreign_job_is_not_cloned(user: Browser, database: Database, file: File) -> None:
    stranger = make_tenant(database, name="Stranger")
    with database.transaction() as session:
        job = make_job(session, stranger.project_id)
    assert user.get(f"/app/new?clone={job.id}").status_code == 404


def test_the_estimate(user: Browser, file: File, tenant: Tenant, database: Database) -> None:
    answer = user.client.post(
        f"/app/files?csrf={user.token()}",
        data={"purpose": "fine-tune"},
        files={"file": ("real.jsonl", dataset(32))},
        follow_redirects=False,
    )
    uploaded = answer.headers["location"].partition("=")[2]
    sent = {"model": BASE_ID, "training_file": uploaded, "hyperparameters.n_epochs": "5"}
    fragment = user.post("/app/new/estimate", sent)
    assert fragment.status_code == 200
    assert not fragment.text.lstrip().startswith("<!doctype")
    assert "5 epochs of batches of 16" in fragment.text
    assert "No worker of this server is there now." in fragment.text
    page = user.post("/app/new", {**sent, "estimate": "1"})
    assert "5 epochs of batches of 16" in page.text
    assert _num_jobs(database) == 0
    with database.transaction() as session:
        make_worker(session, job_memory_bytes=80 * 10**9, heartbeat_at=database.now())
    fits = user.post("/app/new/estimate", sent).text
    assert "is not known: " in fits, "the files of this base are not on this server"
    assert "from 1 to 50" in user.post("/app/new/estimate", {**sent, "hyperparameters.n_epochs": "0"}).text


def test_an_estimate_without_a_file_asks_for_one(user: Browser, file: File) -> None:
    assert "Choose a base and a file" in user.post("/app/new/estimate", {"model": BASE_ID}).text


def test_a_base_says_how_it_was_aligned_and_a_defence_can_be_chosen(
    user: Browser, database: Database, tenant: Tenant, file: File
) -> None:
    floor = {"floor": {"harmful_score": 12.34}, "model": {"defences": ["sft", "lisa", "ldifs"]}}
    with database.transaction() as session:
        make_base(session, alignment_method="vaccine (rho 2.0)", measurements=floor)
    page = user.get("/app/new").text
    assert "aligned by vaccine (rho 2.0), 12.3 % harmful by itself" in page
    choices = page.split('id="defence.name"')[1].split("</select>")[0]
    assert "ldifs" in choices
    assert "lisa" not in choices, "this base has no alignment data"
    assert 'id="defence.strength"' in page
    assert 'id="defence.rho"' not in page
    sent = {"model": BASE_ID, "training_file": file.id, "defence.name": "ldifs", "defence.strength": "3"}
    answer = user.post("/app/new", sent)
    assert answer.status_code == 303, answer.text
    job_id = answer.headers["location"].removeprefix("/app/jobs/")
    with database.snapshot() as session:
        assert session.get_one(Job, job_id).spec["defence"] == {"name": "ldifs", "strength": 3.0}
    assert "LDIFS (strength 3)" in user.get(f"/app/jobs/{job_id}").text
    clone = user.get(f"/app/new?clone={job_id}").text
    assert re.search(r'id="defence.strength"[^>]*value="3', clone)
    refused = user.post("/app/new", sent | {"defence.name": "", "defence.strength": "3"})
    assert refused.status_code == 400
    assert "defence.name" in refused.text
