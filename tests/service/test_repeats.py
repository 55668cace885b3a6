"""Sent twice, made once: by Idempotency-Key and by the client's own retries, in turn and at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient
from openai import OpenAI
from sqlalchemy import func, select, update

from service import repeats
from service.db import Database
from service.models import File, FirstAnswer, Job, Upload, UploadPart
from service.storage import Storage
from tests.builders import BASE_ID, Tenant, dataset, make_base, make_file, make_upload

sqlite_only = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)

Send = Callable[[int, Mapping[str, str | bytes]], httpx.Response]
ROUTES = ("files", "uploads", "parts", "jobs")
TABLES: dict[str, type] = {"files": File, "uploads": Upload, "parts": UploadPart, "jobs": Job}


@pytest.fixture
def send(client: TestClient, database: Database, tenant: Tenant, request: pytest.FixtureRequest) -> Send:
    """`send(content, headers)` to the route that the test is for; another number is another content."""
    with database.transaction() as session:
        make_base(session)
        file_id = make_file(session, tenant.project_id, purpose="fine-tune").id
        upload_id = make_upload(session, tenant.project_id).id

    def post(content: int, headers: Mapping[str, str | bytes]) -> httpx.Response:
        bodies: dict[str, tuple[str, dict[str, Any]]] = {
            "files": ("/files", {"data": {"purpose": "fine-tune"}, "files": {"file": dataset(10 + content)}}),
            "uploads": (
                "/uploads",
                {"json": {"bytes": content, "filename": "x", "mime_type": "x", "purpose": "fine-tune"}},
            ),
            "parts": (f"/uploads/{upload_id}/parts", {"files": {"data": b"x" * content}}),
            "jobs": (
                "/fine_tuning/jobs",
                {"json": {"model": BASE_ID, "training_file": file_id, "seed": content}},
            ),
        }
        path, body = bodies[request.param]
        return client.post(path, headers={**tenant.headers, **headers}, **body)

    return post


def made(database: Database, route: str) -> int:
    """Beyond what the fixture made."""
    with database.snapshot() as session:
        number = session.scalar(select(func.count()).select_from(TABLES[route])) or 0
    return number - (route in ("files", "uploads"))


def key(name: str) -> dict[str, str]:
    return {"Idempotency-Key": name}


def retry(count: int) -> dict[str, str]:
    return {"x-stainless-retry-count": str(count)}


each_route = pytest.mark.parametrize(
    ("send", "route"), [(route, route) for route in ROUTES], indirect=["send"], ids=ROUTES
)


@each_route
def test_a_key_makes_one_thing(send: Send, route: str, database: Database, storage: Storage) -> None:
    first = send(1, key("a"))
    assert first.status_code == 200, first.text
    assert "idempotent-replayed" not in first.headers
    again = send(1, key("a"))
    assert (again.status_code, again.json()) == (200, first.json())
    assert again.headers["idempotent-replayed"] == "true"
    assert again.headers["content-type"] == "application/json"
    assert again.headers["x-request-id"] != first.headers["x-request-id"]

    other = send(2, key("a"))
    error = other.json()["error"]
    assert (other.status_code, error["code"], error["param"]) == (
        400,
        "idempotency_key_reused",
        "Idempotency-Key",
    )
    assert made(database, route) == 1
    assert len(storage.keys("")) == (1 if route in ("files", "parts") else 0)
    assert send(1, key("b")).json()["id"] != first.json()["id"]
    assert made(database, route) == 2


@each_route
def test_a_retry_of_the_client_makes_one_thing(
    send: Send, route: str, database: Database, storage: Storage
) -> None:
    first = send(1, retry(0))
    for count in (1, 2):
        again = send(1, retry(count))
        assert (again.json(), again.headers["idempotent-replayed"]) == (first.json(), "true")
    assert made(database, route) == 1
    assert len(storage.keys("")) == (1 if route in ("files", "parts") else 0)
    # What is not a retry is meant; what has another content is another thing.
    second = send(1, retry(0))
    assert second.json()["id"] != first.json()["id"]
    assert send(1, retry(1)).json() == second.json()
    assert send(2, retry(1)).json()["id"] not in (first.json()["id"], second.json()["id"])
    assert send(1, {}).json()["id"] not in (first.json()["id"], second.json()["id"])
    assert made(database, route) == 4


@each_route
def test_a_retry_whose_first_attempt_never_arrived_counts_as_the_first(
    send: Send, route: str, database: Database
) -> None:
    assert send(1, retry(1)).json() == send(1, retry(2)).json()
    assert made(database, route) == 1


@each_route
def test_at_once_too(send: Send, route: str, database: Database) -> None:
    """The second waits until the first has made it."""
    for number, headers in enumerate((key("a"), retry(1)), start=1):
        with ThreadPoolExecutor(6) as threads:
            answers = list(threads.map(lambda _, headers=headers: send(1, headers), range(6)))
        assert {answer.status_code for answer in answers} == {200}, [answer.text for answer in answers]
        assert len({answer.text for answer in answers}) == 1
        assert sorted("idempotent-replayed" in answer.headers for answer in answers) == [False] + [True] * 5
        assert made(database, route) == number


@pytest.mark.parametrize(("send", "route"), [("jobs", "jobs")], indirect=["send"])
class TestOnJobs:
    def test_a_retry_after_two_minutes_is_a_new_job(self, send: Send, route: str, database: Database) -> None:
        send(1, retry(0))
        with database.transaction() as session:
            session.execute(update(FirstAnswer).values(created_at=time.time() - repeats.RETRY_SECONDS - 1))
        assert "idempotent-replayed" not in send(1, retry(1)).headers
        assert made(database, route) == 2

    def test_a_key_lives_for_a_day(self, send: Send, route: str, database: Database) -> None:
        first = send(1, key("a"))
        with database.snapshot() as session:
            answer = session.scalars(select(FirstAnswer)).one()
        assert answer.expires_at == answer.created_at + 24 * 3600
        with database.transaction() as session:
            repeats.forget_expired(session, now=answer.expires_at - 1)
        assert send(1, key("a")).json() == first.json()
        with database.transaction() as session:  # over, but not swept up yet
            session.execute(update(FirstAnswer).values(expires_at=time.time() - 1))
        second = send(2, key("a"))
        assert second.json()["id"] != first.json()["id"]
        assert send(2, key("a")).json() == second.json()
        with database.transaction() as session:
            repeats.forget_expired(session, now=time.time() + 24 * 3600 + 1)
        with database.snapshot() as session:
            assert session.scalars(select(FirstAnswer)).all() == []

    def test_an_answer_that_made_nothing_is_not_kept(
        self, send: Send, route: str, database: Database, tenant: Tenant
    ) -> None:
        """Put right what was wrong, and the same request goes through."""
        with database.transaction() as session:
            session.execute(update(File).values(deleted_at=1.0))
        assert send(1, key("a")).status_code == 404
        with database.transaction() as session:
            session.execute(update(File).values(deleted_at=None))
        assert send(1, key("a")).status_code == 200

    def test_a_failed_commit_keeps_neither_job_nor_answer(
        self, send: Send, route: str, database: Database, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        remember = repeats.Submission.remember

        def die_afterwards(self: repeats.Submission, session: Any, answer: Any) -> None:
            remember(self, session, answer)
            raise RuntimeError("killed before the commit")

        monkeypatch.setattr(repeats.Submission, "remember", die_afterwards)
        assert send(1, key("a")).status_code == 500
        monkeypatch.undo()
        answer = send(1, key("a"))
        assert (answer.status_code, "idempotent-replayed" in answer.headers) == (200, False)
        assert made(database, route) == 1

    @pytest.mark.parametrize("value", ["", "x" * 256, "tab\there", "\x80"])
    def test_bad_keys(self, send: Send, route: str, value: str) -> None:
        answer = send(1, {"Idempotency-Key": value.encode("latin-1")})
        error = answer.json()["error"]
        assert (answer.status_code, error["param"], error["code"]) == (
            400,
            "Idempotency-Key",
            "invalid_value",
        )

    @pytest.mark.parametrize("value", ["x", "-1", "9" * 5000, "1.5", "\xb2"])
    def test_a_count_that_is_none_is_ignored(self, send: Send, route: str, value: str) -> None:
        assert send(1, {"x-stainless-retry-count": value.encode("latin-1")}).status_code == 200

    def test_the_same_key_on_another_route(
        self, send: Send, route: str, client: TestClient, tenant: Tenant
    ) -> None:
        send(1, key("a"))
        body = {"bytes": 1, "filename": "x", "mime_type": "x", "purpose": "user_data"}
        answer = client.post("/uploads", json=body, headers={**tenant.headers, **key("a")})
        assert answer.json()["error"]["code"] == "idempotency_key_reused"


def test_completing_with_a_key(client: TestClient, tenant: Tenant) -> None:
    upload = {
        "bytes": len(dataset(10)),
        "filename": "x",
        "mime_type": "x",
        "purpose": "fine-tune",
    }
    upload_id = client.post("/uploads", json=upload, headers=tenant.headers).json()["id"]
    sent = client.post(f"/uploads/{upload_id}/parts", files={"data": dataset(10)}, headers=tenant.headers)
    body = {"part_ids": [sent.json()["id"]]}
    headers = {**tenant.headers, **key("a")}
    first = client.post(f"/uploads/{upload_id}/complete", json=body, headers=headers)
    again = client.post(f"/uploads/{upload_id}/complete", json=body, headers=headers)
    assert (again.json(), again.headers["idempotent-replayed"]) == (first.json(), "true")
    other = client.post(f"/uploads/{upload_id}/complete", json={"part_ids": []}, headers=headers)
    assert other.json()["error"]["code"] == "idempotency_key_reused"


@sqlite_only
def test_the_unmodified_client_retries_without_a_second_job(
    api_url: str, database: Database, tenant: Tenant
) -> None:
    """Its first answer gets lost on the way, as behind a proxy that closes the connection."""
    with database.transaction() as session:
        make_base(session)
        file_id = make_file(session, tenant.project_id).id
    lost: list[int] = []

    class LosesTheFirstAnswer(httpx.HTTPTransport):
        def handle_request(self, request: httpx.Request) -> httpx.Response:
            response = super().handle_request(request)
            if not lost:
                lost.append(response.status_code)
                response.close()
                raise httpx.RemoteProtocolError("the connection was closed", request=request)
            return response

    with OpenAI(
        base_url=api_url,
        api_key=tenant.key,
        max_retries=1,
        http_client=httpx.Client(transport=LosesTheFirstAnswer()),
    ) as client:
        job = client.fine_tuning.jobs.create(model=BASE_ID, training_file=file_id)
        assert lost == [200]
        assert [found.id for found in client.fine_tuning.jobs.list()] == [job.id]
        keyed = [
            client.fine_tuning.jobs.create(
                model=BASE_ID, training_file=file_id, extra_headers={"Idempotency-Key": "k"}
            )
            for _ in range(2)
        ]
        assert keyed[0] == keyed[1]
