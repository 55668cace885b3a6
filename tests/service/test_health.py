"""Liveness says the process runs; readiness says which part does not."""

from __future__ import annotations

import psycopg
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import make_url, text

from service import schema
from service.app import create_app
from service.db import Database
from service.settings import Settings
from service.storage import Storage


def test_alive_and_ready_without_a_key(client: TestClient) -> None:
    assert client.get("http://testserver/healthz").json() == {"status": "ok"}
    answer = client.get("http://testserver/readyz")
    assert answer.status_code == 200
    assert answer.json() == {"status": "ready", "database": "ok", "schema": "ok", "storage": "ok"}


def test_a_schema_of_another_version_is_not_ready(client: TestClient, database: Database) -> None:
    with database.transaction() as session:
        session.execute(text("UPDATE alembic_version SET version_num = 'older'"))
    answer = client.get("http://testserver/readyz")
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "not_ready"
    assert answer.json()["error"]["checks"] == {"database": "ok", "schema": "not migrated", "storage": "ok"}
    assert client.get("http://testserver/healthz").status_code == 200


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_full_disk_is_not_ready(
    client: TestClient, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full() -> None:
        raise OSError("no space left on /secret/path")

    monkeypatch.setattr(storage, "probe", full)
    answer = client.get("http://testserver/readyz")
    assert answer.status_code == 503
    assert answer.json()["error"]["message"] == "Not ready: storage not writable."


def test_a_database_that_went_away_is_not_ready(
    postgres_url: str, postgresql_url: str, storage: Storage, storage_url: str
) -> None:
    settings = Settings(database_url=postgresql_url, storage_url=storage_url)
    database = Database.from_url(postgresql_url)
    with TestClient(create_app(settings, database=database, storage=storage)) as client:
        assert client.get("/readyz").status_code == 200
        name = make_url(postgresql_url).database
        with psycopg.connect(postgres_url, autocommit=True) as connection:
            connection.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name]
            )
        answer = client.get("/readyz")
        assert answer.status_code == 503
        assert answer.json()["error"]["checks"]["database"] == "does not answer"
    database.close()


def test_the_application_does_not_start_on_an_empty_database(tmp_path: object, storage_url: str) -> None:
    settings = Settings(database_url=f"sqlite:///{tmp_path}/empty.db", storage_url=storage_url)
    with (
        pytest.raises(schema.SchemaError, match="autoclave admin migrate"),
        TestClient(create_app(settings)),
    ):
        pass
