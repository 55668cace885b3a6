"""What a key may do: one table for every route, enforced before the body is read."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient
from openai import OpenAI, PermissionDeniedError

from service import auth
from service.db import Database
from service.scopes import NEEDED, AdminScope, Scope
from tests.builders import Tenant, make_admin, make_sibling

PROJECT_ROUTES = [(*route, scope) for route, scope in NEEDED.items() if isinstance(scope, Scope)]
ADMIN_ROUTES = [(*route, scope) for route, scope in NEEDED.items() if isinstance(scope, AdminScope)]


def url(path: str) -> str:
    return re.sub(r"\{[a-z_]+\}", "x", path)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_every_route_stands_in_the_table(client: TestClient) -> None:
    description = client.get("http://testserver/openapi.json").json()
    routes = {
        (method.upper(), path.removeprefix("/v1"))
        for path, operations in description["paths"].items()
        for method in operations
        if path.startswith("/v1/")
    }
    # A link is its own permission.
    assert set(NEEDED) == routes - {("GET", "/downloads/{token}")}


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize(("method", "path", "scope"), PROJECT_ROUTES)
def test_the_scope_is_needed_and_enough(
    client: TestClient, database: Database, tenant: Tenant, method: str, path: str, scope: Scope
) -> None:
    others = make_sibling(database, tenant, scopes=[other for other in Scope if other is not scope])
    refused = client.request(method, url(path), headers=others.headers, content=b"{malformed")
    error = refused.json()["error"]
    assert (refused.status_code, error["code"], error["type"]) == (
        403,
        "insufficient_scope",
        "permission_error",
    )
    assert repr(scope.value) in error["message"]
    alone = make_sibling(database, tenant, scopes=[scope])
    for who in (alone, tenant):
        answer = client.request(method, url(path), headers=who.headers, content=b"{malformed")
        assert answer.status_code in (200, 400, 404, 415), answer.text


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize(("method", "path", "scope"), ADMIN_ROUTES)
def test_a_reader_only_reads(
    client: TestClient, database: Database, tenant: Tenant, method: str, path: str, scope: AdminScope
) -> None:
    assert (scope in (AdminScope.READ, AdminScope.BASES_READ)) == (method == "GET")
    reader = make_admin(database, tenant.organization_id, role=auth.Role.READER)
    answer = client.request(method, url(path), headers=reader, content=b"{malformed")
    if scope is AdminScope.READ:
        assert answer.status_code in (200, 404)
    else:
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "insufficient_scope")


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize(("method", "path", "scope"), ADMIN_ROUTES)
def test_the_role_catalog_may_do_all_of_it(
    client: TestClient, database: Database, tenant: Tenant, method: str, path: str, scope: AdminScope
) -> None:
    headers = make_admin(database, tenant.organization_id, role=auth.Role.CATALOG)
    answer = client.request(method, url(path), headers=headers, content=b"{malformed")
    assert answer.status_code in (200, 400, 404), answer.text


def test_scopes_are_kept_on_both_databases(client: TestClient, database: Database, tenant: Tenant) -> None:
    limited = make_sibling(database, tenant, scopes=[Scope.FILES_READ])
    assert client.get("/files", headers=limited.headers).status_code == 200
    assert client.get("/fine_tuning/jobs", headers=limited.headers).status_code == 403


def test_a_key_ends(
    client: TestClient, database: Database, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And is then answered like one that never existed, for projects and admins."""
    end = time.time() + 3600
    keys = [
        (make_sibling(database, tenant, expires_at=end).headers, "/files"),
        (make_admin(database, tenant.organization_id, expires_at=end), "/organization/projects"),
    ]
    for headers, path in keys:
        assert client.get(path, headers=headers).status_code == 200
    monkeypatch.setattr("service.deps.time.time", lambda: end)
    for headers, path in keys:
        answer = client.get(path, headers=headers)
        never = client.get(path, headers={"Authorization": "Bearer sk-admin-never"})
        assert (answer.status_code, answer.text) == (401, never.text)


def test_an_admin_key_is_revoked_at_once(client: TestClient, database: Database, tenant: Tenant) -> None:
    with database.transaction() as session:
        row, key = auth.create_admin_key(
            session, organization_id=tenant.organization_id, name="x", now=time.time()
        )
        assert key.startswith(row.prefix)
        assert key not in (row.prefix, row.secret_sha256)
    headers = {"Authorization": f"Bearer {key}"}
    assert client.get("/organization/projects", headers=headers).status_code == 200
    with database.snapshot() as session:
        used = session.get_one(auth.AdminKey, row.id).last_used_at
        assert used is not None
        assert abs(used - time.time()) < 60
    for now in (5.0, 9.0):
        with database.transaction() as session:
            assert auth.revoke_admin_key(session, key_id=row.id, now=now).revoked_at == 5.0
    assert client.get("/organization/projects", headers=headers).status_code == 401
    with database.transaction() as session, pytest.raises(auth.UnknownIdError, match="admin key 'x'"):
        auth.revoke_admin_key(session, key_id="x", now=0.0)


@pytest.fixture
def limited_client(api_url: str, database: Database, tenant: Tenant) -> Iterator[OpenAI]:
    limited = make_sibling(database, tenant, scopes=[Scope.FILES_READ])
    with OpenAI(base_url=api_url, api_key=limited.key, _strict_response_validation=True) as client:
        yield client


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_what_the_client_is_told(limited_client: OpenAI) -> None:
    assert limited_client.files.list().data == []
    with pytest.raises(PermissionDeniedError, match="models:read") as caught:
        limited_client.models.list()
    assert caught.value.code == "insufficient_scope"


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_no_project_key_looks_like_an_admin_key(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = iter(["admin-x", "fine"])
    with database.transaction() as session:
        organization = auth.create_organization(session, name="o", now=0.0)
        project = auth.create_project(session, organization_id=organization.id, name="p", now=0.0)
        monkeypatch.setattr("service.auth.secrets.token_urlsafe", lambda _: next(drawn))
        _, key = auth.create_api_key(session, project_id=project.id, name="k", now=0.0)
    assert key == "sk-fine"
