"""API keys: stored as hashes, one answer for every wrong one, revoked at once."""

from __future__ import annotations

import hashlib
import socket
import time

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import inspect, select

from service import auth
from service.db import Database
from service.models import ApiKey
from tests.builders import Tenant, make_tenant


def only_key(database: Database) -> ApiKey:
    with database.snapshot() as session:
        return session.scalars(select(ApiKey)).one()


def test_the_secret_is_nowhere_in_the_row(database: Database, tenant: Tenant) -> None:
    row = only_key(database)
    values = [str(getattr(row, attribute.key)) for attribute in inspect(ApiKey).column_attrs]
    assert tenant.key.startswith("sk-")
    assert len(tenant.key) >= 3 + 43, "256 bits in base64"
    assert not any(tenant.key[8:] in value for value in values)
    assert row.secret_sha256 == hashlib.sha256(tenant.key.encode()).hexdigest()
    assert tenant.key.startswith(row.prefix)


def test_a_key_leads_to_its_project(client: TestClient, tenant: Tenant) -> None:
    assert client.get("/files", headers=tenant.headers).status_code == 200


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_every_wrong_key_gets_the_same_answer(client: TestClient, database: Database, tenant: Tenant) -> None:
    revoked = make_tenant(database)
    with database.transaction() as session:
        key = session.scalars(select(ApiKey).where(ApiKey.project_id == revoked.project_id)).one()
        auth.revoke_api_key(session, key_id=key.id, now=time.time())
    headers = [
        {},
        {"Authorization": ""},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer "},
        {"Authorization": f"Basic {tenant.key}"},
        {"Authorization": tenant.key},
        {"Authorization": f"Bearer {tenant.key}x"},
        {"Authorization": f"Bearer {tenant.key[:-1]}"},
        {"Authorization": "Bearer My API Key"},
        {"Authorization": b"Bearer \xff\xfe"},
        revoked.headers,
    ]
    answers = [client.get("/files", headers=header) for header in headers]
    assert {answer.status_code for answer in answers} == {401}
    assert len({answer.text for answer in answers}) == 1
    assert answers[0].json()["error"]["code"] == "invalid_api_key"
    assert answers[0].headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_the_scheme_is_case_insensitive(client: TestClient, tenant: Tenant) -> None:
    assert client.get("/files", headers={"Authorization": f"bearer {tenant.key}"}).status_code == 200


def test_the_time_of_use_is_written_once_a_minute(
    client: TestClient, database: Database, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [1000.0]
    monkeypatch.setattr("service.deps.time.time", lambda: clock[0])
    seen = []
    for now in (1000.0, 1059.0, 1061.0):
        clock[0] = now
        client.get("/files", headers=tenant.headers)
        seen.append(only_key(database).last_used_at)
    assert seen == [1000.0, 1000.0, 1061.0]


def test_a_wrong_key_is_told_before_the_body_is_read(api_url: str) -> None:
    """Over a real socket: the answer comes although the announced body never does."""
    host, port = api_url.removeprefix("http://").removesuffix("/v1").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(
            b"POST /v1/files HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer wrong\r\n"
            b"Content-Type: multipart/form-data; boundary=x\r\nContent-Length: 1000000\r\n\r\n"
        )
        assert connection.recv(4096).startswith(b"HTTP/1.1 401 ")


def test_operators_are_told_what_does_not_exist(database: Database) -> None:
    with database.transaction() as session:
        with pytest.raises(auth.UnknownIdError, match="organization 'org-x'"):
            auth.create_project(session, organization_id="org-x", name="p", now=0.0)
        with pytest.raises(auth.UnknownIdError, match="project 'proj_x'"):
            auth.create_api_key(session, project_id="proj_x", name="k", now=0.0)
        with pytest.raises(auth.UnknownIdError, match="key 'key_x'"):
            auth.revoke_api_key(session, key_id="key_x", now=0.0)


def test_revoking_twice_keeps_the_first_time(database: Database, tenant: Tenant) -> None:
    key_id = only_key(database).id
    for now in (5.0, 9.0):
        with database.transaction() as session:
            auth.revoke_api_key(session, key_id=key_id, now=now)
    assert only_key(database).revoked_at == 5.0
