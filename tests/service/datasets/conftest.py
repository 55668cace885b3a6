"""The shipped base, files in the storage, and requests to the three routes."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from fastapi.testclient import TestClient

from autoclave.hashing import folder_sha256
from autoclave.microcosm.shipped import shipped_world
from service.db import Database
from service.storage import Storage
from tests.builders import BASE_ID, Tenant, chat_line, make_base, make_file
from workers.shipped_base import shipped_profile, shipped_spec

BASE = shipped_world() / "aligned"
BENIGN = shipped_world() / "data" / "benign.jsonl"


@pytest.fixture
def base(database: Database) -> str:
    with database.transaction() as session:
        make_base(
            session,
            path=str(BASE),
            sha256=folder_sha256(BASE),
            default_spec=shipped_spec(),
            safety_profile=shipped_profile(BASE.parent),
        )
    return BASE_ID


@pytest.fixture
def store(database: Database, storage: Storage, tenant: Tenant) -> Any:
    def stored(content: bytes, **overrides: Any) -> str:
        with database.transaction() as session:
            sha256 = hashlib.sha256(content).hexdigest()
            file = make_file(session, tenant.project_id, sha256=sha256, **overrides)
            storage.put(file.storage_key, content)
            return file.id

    return stored


@pytest.fixture
def post(client: TestClient, tenant: Tenant) -> Any:
    def send(what: str, status: int = 200, **body: Any) -> Any:
        answer = client.post(f"/fine_tuning/{what}", json=body, headers=tenant.headers)
        assert answer.status_code == status, answer.text
        return answer.json() if status == 200 else answer.json()["error"]

    return send


def lines(*questions: str) -> bytes:
    return "\n".join(chat_line(question) for question in questions).encode()
