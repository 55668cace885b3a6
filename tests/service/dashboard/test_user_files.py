from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from service.auth import create_api_key
from service.db import Database
from service.models import File
from service.scopes import Scope
from tests.builders import Tenant, dataset, make_file, make_job, make_tenant
from tests.service.dashboard.conftest import Browser


def _send(browser: Browser, content: bytes, *, scripted: bool = False, token: str | None = None) -> Any:
    given = browser.token() if token is None else token
    return browser.client.post(
        "/app/files" if scripted else f"/app/files?csrf={given}",
        data={"purpose": "fine-tune"},
        files={"file": ("train.jsonl", content)},
        headers={"x-csrf-token": given, "x-upload": "1"} if scripted else {},
        follow_redirects=False,
    )


def test_without_files_the_page_shows_what_a_line_looks_like(user: Browser) -> None:
    text = user.get("/app/files").text
    assert "No files yet" in text
    assert "&#34;messages&#34;" in text or '"messages"' in text


def test_an_uploaded_file_is_in_the_list(user: Browser, database: Database, tenant: Tenant) -> None:
    answer = _send(user, dataset(12))
    assert answer.status_code == 303
    text = user.get(answer.headers["location"]).text
    assert "train.jsonl is uploaded: 12 conversations" in text
    with database.snapshot() as session:
        file = session.query(File).one()
    assert (file.project_id, file.num_examples) == (tenant.project_id, 12)


def test_the_script_is_told_where_to_go(user: Browser) -> None:
    answer = _send(user, dataset(12), scripted=True)
    assert answer.status_code == 200
    assert answer.json()["location"].startswith("/app/files?uploaded=file-")


@pytest.mark.parametrize("scripted", [False, True])
def test_a_broken_file_is_explained_line_by_line_and_not_stored(
    user: Browser, database: Database, scripted: bool
) -> None:
    lines = dataset(12).splitlines()
    lines[4] = b'{"messages": [{"role": "robot", "content": "<b>x</b>"}]}'
    lines[8] = b"{not json"
    answer = _send(user, b"\n".join(lines), scripted=scripted)
    assert answer.status_code == 400
    assert "nothing was stored" in answer.text
    assert ">5<" in answer.text
    assert ">9<" in answer.text
    assert "<b>x" not in answer.text
    assert answer.text.lstrip().startswith("<section" if scripted else "<!doctype")
    with database.snapshot() as session:
        assert session.query(File).count() == 0


@pytest.mark.parametrize("scripted", [False, True])
def test_an_upload_without_the_token_is_refused(user: Browser, database: Database, scripted: bool) -> None:
    assert _send(user, dataset(12), scripted=scripted, token="0" * 64).status_code == 403
    with database.snapshot() as session:
        assert session.query(File).count() == 0


def test_a_key_without_the_scope_sees_no_form_and_cannot_upload(
    browser: Browser, database: Database, tenant: Tenant
) -> None:
    with database.transaction() as session:
        _, key = create_api_key(
            session, project_id=tenant.project_id, name="reader", now=1.0, scopes=[Scope.FILES_READ]
        )
    browser.sign_in(key)
    assert "lacks the scope" in browser.get("/app/files").text
    assert _send(browser, dataset(12)).status_code == 403
    assert browser.get("/app").status_code == 403, "jobs:read is another scope"


def test_deleting(user: Browser, database: Database, tenant: Tenant) -> None:
    with database.transaction() as session:
        file = make_file(session, tenant.project_id, filename="old.jsonl")
    assert "old.jsonl" in user.get("/app/files").text
    assert user.post(f"/app/files/{file.id}/delete").status_code == 303
    assert "old.jsonl" not in user.get("/app/files").text


def test_a_file_in_use_is_kept_and_the_page_says_why(
    user: Browser, database: Database, tenant: Tenant
) -> None:
    with database.transaction() as session:
        job = make_job(session, tenant.project_id, status="running", stage="train")
    answer = user.post(f"/app/files/{job.training_file_id}/delete")
    assert answer.status_code == 400
    assert job.id in answer.text


def test_other_projects_files_are_not_there(user: Browser, database: Database) -> None:
    stranger = make_tenant(database, name="Stranger")
    with database.transaction() as session:
        file = make_file(session, stranger.project_id, filename="secret.jsonl")
    assert "secret.jsonl" not in user.get("/app/files").text
    assert user.post(f"/app/files/{file.id}/delete").status_code == 404
    assert user.get(f"/app/files?after={file.id}").status_code == 404


def test_a_name_from_outside_is_text(user: Browser, database: Database, tenant: Tenant) -> None:
    with database.transaction() as session:
        make_file(session, tenant.project_id, filename='<img src=x onerror="a()">.jsonl')
    text = user.get("/app/files").text
    assert "<img" not in text


def test_older_files_are_on_the_next_page(
    user: Browser, database: Database, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.dashboard.user_files.FILES_PER_PAGE", 2)
    with database.transaction() as session:
        files = [
            make_file(session, tenant.project_id, filename=f"{age}.jsonl", created_at=float(age))
            for age in range(3)
        ]
    first = user.get("/app/files").text
    assert f"/app/files?after={files[1].id}" in first
    second = user.get(f"/app/files?after={files[1].id}").text
    assert "0.jsonl" in second
    assert "Older files" not in second


def test_nobody_signed_in_uploads_nothing(open_browser: Callable[[], Browser]) -> None:
    answer = _send(open_browser(), dataset(12), token="")
    assert answer.status_code == 401
