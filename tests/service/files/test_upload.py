"""Uploads over HTTP: what is accepted is stored whole, what is refused leaves nothing."""

from __future__ import annotations

import io
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import select

from service.db import Database
from service.files import service as files_service
from service.models import File
from service.settings import Settings
from service.storage import Storage
from tests.builders import Tenant, chat_line, dataset

sqlite_only = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


def upload(
    client: TestClient, tenant: Tenant, content: bytes, *, filename: str = "train.jsonl", **fields: str
) -> httpx.Response:
    return client.post(
        "/files",
        headers=tenant.headers,
        data={"purpose": "fine-tune", **fields},
        files={"file": (filename, io.BytesIO(content))},
    )


def stored(database: Database, storage: Storage) -> tuple[list[File], list[str]]:
    with database.snapshot() as session:
        return list(session.scalars(select(File))), storage.keys("files")


def refused(answer: httpx.Response, status: int = 400) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    error: dict[str, Any] = answer.json()["error"]
    return error


def test_an_upload_comes_back_equal(
    client: TestClient, database: Database, storage: Storage, tenant: Tenant
) -> None:
    content = dataset(12)
    file = upload(client, tenant, content).json()
    assert file["object"] == "file"
    assert (file["filename"], file["purpose"], file["status"]) == ("train.jsonl", "fine-tune", "processed")
    assert (file["bytes"], file["num_examples"]) == (len(content), 12)
    assert client.get(f"/files/{file['id']}", headers=tenant.headers).json() == file
    answer = client.get(f"/files/{file['id']}/content", headers=tenant.headers)
    assert answer.content == content
    assert answer.headers["content-length"] == str(len(content))
    assert answer.headers["etag"] == f'"{file["sha256"]}"'
    assert storage.keys("files") == [f"files/{file['id']}"]


BAD_DATASETS = {
    "broken line": (dataset(5) + b'{"messages": [\n' + dataset(6), 6, "", "invalid_json"),
    "not an object": (dataset(5) + b"[1]\n" + dataset(6), 6, "", "not_an_object"),
    "invalid UTF-8": (dataset(5) + b'{"messages": "\xff"}\n' + dataset(6), 6, "", "invalid_utf8"),
    "wrong role": (
        dataset(9) + b'{"messages":[{"role":"robot","content":"x"}]}\n',
        10,
        "/messages/0/role",
        "unrecognized_role",
    ),
    "no assistant": (
        dataset(9) + b'{"messages":[{"role":"user","content":"x"}]}\n',
        10,
        "/messages",
        "no_trained_assistant_message",
    ),
    "empty file": (b"", 0, "", "empty_file"),
    "nine examples": (dataset(9), 0, "", "too_few_examples"),
}


@sqlite_only
@pytest.mark.parametrize(("content", "line", "pointer", "rule"), BAD_DATASETS.values(), ids=BAD_DATASETS)
def test_a_bad_dataset_is_refused_by_line_and_leaves_nothing(
    client: TestClient,
    database: Database,
    storage: Storage,
    tenant: Tenant,
    content: bytes,
    line: int,
    pointer: str,
    rule: str,
) -> None:
    error = refused(upload(client, tenant, content))
    assert (error["code"], error["param"]) == ("invalid_training_file", "file")
    issue = next(issue for issue in error["issues"] if issue["rule"] == rule)
    assert (issue["line"], issue["pointer"]) == (line, pointer)
    assert issue["fix"]
    assert rule in error["message"]
    assert f"line {line}" in error["message"] or line == 0
    assert error["num_issues"] == len(error["issues"])
    assert stored(database, storage) == ([], [])


def test_many_issues_are_counted_and_the_first_are_shown(client: TestClient, tenant: Tenant) -> None:
    error = refused(upload(client, tenant, b"{}\n" * 1000))
    assert error["num_issues"] >= 1000
    assert [issue["line"] for issue in error["issues"]] == list(range(1, 51))


@sqlite_only
@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"purpose": "assistants"}, "purpose", "unsupported_purpose"),
        (
            {"purpose": "fine-tune", "expires_after[hours]": "1"},
            "expires_after[hours]",
            "unknown_parameter",
        ),
        ({"purpose": "fine-tunes"}, "purpose", "invalid_value"),
        (
            {"purpose": "fine-tune", "expires_after[anchor]": "now", "expires_after[seconds]": "3600"},
            "expires_after[anchor]",
            "invalid_value",
        ),
        (
            {"purpose": "fine-tune", "expires_after[anchor]": "created_at"},
            "expires_after[seconds]",
            "missing_required_parameter",
        ),
        (
            {"purpose": "fine-tune", "expires_after[seconds]": "3600"},
            "expires_after[anchor]",
            "missing_required_parameter",
        ),
        ({}, "purpose", "missing_required_parameter"),
    ],
)
@pytest.mark.parametrize("file_first", [True, False])
def test_bad_fields_are_refused_in_any_order(
    client: TestClient,
    database: Database,
    storage: Storage,
    tenant: Tenant,
    fields: dict[str, str],
    param: str,
    code: str,
    file_first: bool,
) -> None:
    parts = [
        f'--b\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
        for name, value in fields.items()
    ]
    file = (
        '--b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n'
        + dataset(10).decode()
        + "\r\n"
    )
    parts.insert(0 if file_first else len(parts), file)
    body = "".join(parts) + "--b--\r\n"
    headers = {**tenant.headers, "content-type": "multipart/form-data; boundary=b"}
    error = refused(client.post("/files", content=body.encode(), headers=headers))
    assert (error["param"], error["code"]) == (param, code)
    assert stored(database, storage) == ([], [])


@sqlite_only
def test_no_file(client: TestClient, tenant: Tenant) -> None:
    answer = client.post("/files", headers=tenant.headers, files={"purpose": (None, "fine-tune")})
    error = refused(answer)
    assert (error["param"], error["code"]) == ("file", "missing_required_parameter")


@sqlite_only
@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"content-type": "application/json"}, "unsupported_content_type"),
        ({"content-type": "multipart/form-data"}, "unsupported_content_type"),
        (
            {"content-type": "multipart/form-data; boundary=b", "content-encoding": "gzip"},
            "unsupported_content_encoding",
        ),
    ],
)
def test_other_bodies_are_refused(
    client: TestClient, tenant: Tenant, headers: dict[str, str], code: str
) -> None:
    answer = client.post("/files", headers={**tenant.headers, **headers}, content=b"{}")
    assert refused(answer, 415)["code"] == code


class TestLimits:
    @pytest.fixture
    def settings(self, database_url: str, storage_url: str) -> Settings:
        return Settings(
            database_url=database_url,
            storage_url=storage_url,
            max_file_bytes=200_000,
            max_line_bytes=2000,
            min_examples=3,
        )

    @sqlite_only
    def test_a_file_too_large_leaves_nothing(
        self, client: TestClient, database: Database, storage: Storage, tenant: Tenant
    ) -> None:
        for num_examples in (2500, 20_000):  # by its bytes while they come; by its announced length
            error = refused(upload(client, tenant, dataset(num_examples)), 413)
            assert error["code"] == "file_too_large"
            assert "200000 bytes" in error["message"]
        assert stored(database, storage) == ([], [])

    @sqlite_only
    def test_the_limits_are_the_settings(self, client: TestClient, tenant: Tenant) -> None:
        assert upload(client, tenant, dataset(3)).status_code == 200
        assert "at least 3" in refused(upload(client, tenant, dataset(2)))["message"]
        long = (chat_line("x" * 3000) + "\n").encode()
        assert refused(upload(client, tenant, dataset(3) + long))["issues"][0]["rule"] == "line_too_long"


@sqlite_only
@pytest.mark.parametrize(
    ("sent", "shown"),
    [
        ("../../etc/passwd", "passwd"),
        ("C:\\data\\my train.jsonl", "my train.jsonl"),
        ("tr\u0007ain\n.jsonl", "train.jsonl"),
        ("größe 😀.jsonl", "größe 😀.jsonl"),
        ("x" * 1000, "x" * 255),
    ],
)
def test_file_names_are_for_display_only(client: TestClient, tenant: Tenant, sent: str, shown: str) -> None:
    body = (
        b"--b\r\nContent-Disposition: form-data; name=purpose\r\n\r\nfine-tune\r\n"
        b'--b\r\nContent-Disposition: form-data; name=file; filename="%b"\r\n\r\n%b\r\n--b--\r\n'
    ) % (sent.replace("\\", "\\\\").encode(), dataset(10))
    headers = {**tenant.headers, "content-type": "multipart/form-data; boundary=b"}
    answer = client.post("/files", content=body, headers=headers)
    assert answer.status_code == 200, answer.text
    assert answer.json()["filename"] == shown
    content = client.get(f"/files/{answer.json()['id']}/content", headers=tenant.headers)
    assert content.status_code == 200
    assert content.headers["content-disposition"].startswith("attachment; filename*=UTF-8''")


@sqlite_only
def test_a_row_that_cannot_be_written_takes_its_bytes_along(
    client: TestClient, database: Database, storage: Storage, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files_service.ids, "file_id", lambda: "file-same")
    assert upload(client, tenant, dataset(10)).status_code == 200
    monkeypatch.setattr(files_service, "file_key", lambda _: "files/second")
    assert upload(client, tenant, dataset(11)).status_code == 500
    files, keys = stored(database, storage)
    assert [file.num_examples for file in files] == [10]
    assert keys == ["files/file-same"]
