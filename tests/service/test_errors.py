"""Every answer above 399 has OpenAI's error shape and a request id, whoever made it."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import event
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from service.db import Database
from service.deps import MAX_JSON_BYTES
from service.files import repository
from tests.builders import Tenant, get_job, make_queued_job

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


def error(answer: httpx.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"].startswith("req_")
    assert int(answer.headers["openai-processing-ms"]) >= 0
    body = answer.json()
    assert set(body) == {"error"}
    fields: dict[str, Any] = body["error"]
    assert set(fields) >= {"message", "type", "param", "code"}
    assert isinstance(fields["message"], str)
    assert fields["type"] == ("server_error" if status >= 500 else "invalid_request_error")
    return fields


def post(client: TestClient, tenant: Tenant, content: bytes) -> httpx.Response:
    headers = {**tenant.headers, "content-type": "application/json"}
    return client.post("/fine_tuning/jobs", content=content, headers=headers)


def test_unknown_urls(client: TestClient) -> None:
    assert error(client.get("/nothing"), 404)["code"] == "unknown_url"
    assert error(client.get("/files/"), 404)["message"] == "Invalid URL (GET /v1/files/)"


def test_wrong_method(client: TestClient) -> None:
    answer = client.put("/files")
    assert error(answer, 405)["code"] == "method_not_allowed"
    assert answer.headers["allow"]


def test_no_key(client: TestClient) -> None:
    assert error(client.get("/models"), 401)["code"] == "invalid_api_key"


@pytest.mark.parametrize(
    ("content", "param", "code"),
    [
        (b"{bad", None, "invalid_json"),
        (b"\xff\xfe", None, "invalid_json"),
        (b"", None, "missing_required_parameter"),
        (b"[]", None, "invalid_value"),
        (b"{}", "model", "missing_required_parameter"),
        (b'{"model":"m","training_file":3}', "training_file", "invalid_value"),
        (b'{"model":"m","training_file":"f","sed":1}', "sed", "unknown_parameter"),
        (b'{"model":"m\\u0000","training_file":"f"}', "model", "invalid_value"),
        (b'{"model":"m","training_file":"\\ud800"}', "training_file", "invalid_value"),
        (b'{"model":"m","training_file":"f","\\ud800":1}', None, "invalid_value"),
        (b"[" * 100_000, None, "invalid_json"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_malformed_bodies(
    client: TestClient, tenant: Tenant, content: bytes, param: str | None, code: str
) -> None:
    fields = error(post(client, tenant, content), 400)
    assert (fields["param"], fields["code"]) == (param, code)


def test_a_body_too_large(client: TestClient, tenant: Tenant) -> None:
    body = b'{"model":"' + b"a" * MAX_JSON_BYTES + b'"}'
    assert error(post(client, tenant, body), 413)["code"] == "request_too_large"


@pytest.mark.parametrize("url", ["/files?limit=0", "/files?limit=10001", "/files?limit=x", "/files?order=up"])
def test_bad_queries(client: TestClient, tenant: Tenant, url: str) -> None:
    fields = error(client.get(url, headers=tenant.headers), 400)
    assert fields["param"] == url.split("?")[1].split("=", maxsplit=1)[0]


@pytest.mark.parametrize("url", ["/files/a%00b", "/files?purpose=%00", "/models/%00"])
def test_nul_in_the_url(client: TestClient, tenant: Tenant, url: str) -> None:
    assert "NUL" in error(client.get(url, headers=tenant.headers), 400)["message"]


def test_a_bug_shows_nothing_of_itself(
    client: TestClient, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("secret /path/of/server.py")

    monkeypatch.setattr(repository, "get_file", broken)
    answer = client.get("/files/file-x", headers=tenant.headers)
    assert error(answer, 500)["code"] == "internal_error"
    assert "secret" not in answer.text


def test_a_database_that_does_not_answer(
    client: TestClient, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    def down(*_: Any) -> None:
        raise OperationalError("SELECT secret", {}, Exception("host db.internal"))

    monkeypatch.setattr(repository, "get_file", down)
    answer = client.get("/files/file-x", headers=tenant.headers)
    assert error(answer, 503)["code"] == "database_unavailable"
    assert "secret" not in answer.text
    assert "internal" not in answer.text


def test_a_failed_commit_is_not_answered_with_success(
    client: TestClient, database: Database, tenant: Tenant
) -> None:
    """The transaction ends before the answer begins; FastAPI's default would have said 200."""
    with database.transaction() as session:
        job_id = make_queued_job(session, tenant.project_id).id

    def refuse(session: Session) -> None:
        raise RuntimeError("disk full")

    client.get("/files", headers=tenant.headers)  # so that the key's time of use is not due below
    event.listen(Session, "before_commit", refuse)
    try:
        answer = client.post(f"/fine_tuning/jobs/{job_id}/cancel", headers=tenant.headers)
    finally:
        event.remove(Session, "before_commit", refuse)
    assert error(answer, 500)["code"] == "internal_error"
    assert get_job(database, job_id).status == "queued"
