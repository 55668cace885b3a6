"""What every answer carries, whatever its status and whoever asked."""

from __future__ import annotations

import pytest
from fastapi.testclient import TestClient

from service.app import create_app
from service.db import Database
from service.settings import Settings
from service.storage import Storage
from tests.builders import DATA_SHA256, Tenant, make_adapter, make_admin, make_file, make_job

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)

ALWAYS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "x-frame-options": "DENY",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
}


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/files", 200),
        ("GET", "/v1/nothing", 404),
        ("PUT", "/v1/files", 405),
        ("POST", "/v1/fine_tuning/jobs", 400),
        ("GET", "/v1/files?after=%00", 400),
        ("GET", "/healthz", 200),
        ("GET", "/openapi.json", 200),
    ],
)
def test_every_answer(client: TestClient, tenant: Tenant, method: str, path: str, status: int) -> None:
    answer = client.request(method, f"http://testserver{path}", headers=tenant.headers)
    assert answer.status_code == status
    assert {name: answer.headers.get(name) for name in ALWAYS} == ALWAYS
    assert answer.headers.get("cache-control") == ("no-store" if path.startswith("/v1") else None)
    assert "strict-transport-security" not in answer.headers


def test_downloads_too(client: TestClient, database: Database, storage: Storage, tenant: Tenant) -> None:
    with database.transaction() as session:
        file = make_file(session, tenant.project_id, bytes=4, sha256=DATA_SHA256)
        adapter = make_adapter(session, make_job(session, tenant.project_id, training_file_id=file.id))
    storage.put(file.storage_key, b"data")
    storage.put(adapter.storage_key, b"data")
    for path in (f"/files/{file.id}/content", f"/models/{adapter.model_id}/adapter"):
        answer = client.get(path, headers=tenant.headers)
        assert answer.status_code == 200
        assert answer.headers["cache-control"] == "no-store"
        assert {name: answer.headers.get(name) for name in ALWAYS} == ALWAYS
        assert answer.headers["content-disposition"].startswith("attachment")


def test_the_organization_is_named_once_it_is_known(
    client: TestClient, database: Database, tenant: Tenant
) -> None:
    admin = make_admin(database, tenant.organization_id)
    for headers, path, expected in (
        (tenant.headers, "/files", tenant.organization_id),
        (tenant.headers, "/files/file-x", tenant.organization_id),
        (admin, "/organization/projects", tenant.organization_id),
        ({}, "/files", None),
        ({"Authorization": "Bearer wrong"}, "/files", None),
    ):
        answer = client.get(path, headers=headers)
        assert answer.headers.get("openai-organization") == expected, path
    # Not the one of the request before.
    assert "openai-organization" not in client.get("http://testserver/healthz").headers


def test_https_is_remembered(settings: Settings, database: Database, storage: Storage) -> None:
    app = create_app(settings, database=database, storage=storage)
    with TestClient(app, base_url="https://testserver") as client:
        assert client.get("/healthz").headers["strict-transport-security"] == "max-age=31536000"
    with TestClient(app, base_url="http://testserver") as client:
        spoofed = client.get("/healthz", headers={"x-forwarded-proto": "https"})
        assert "strict-transport-security" not in spoofed.headers
