from __future__ import annotations

import hashlib

import pytest

from service.db import Database
from service.models import Adapter
from service.storage import Storage
from tests.builders import Tenant, make_adapter, make_job, make_tenant
from tests.service.dashboard.conftest import Browser

TAR = b"sanitised " * 1000


def _release(database: Database, storage: Storage, project_id: str, suffix: str) -> Adapter:
    with database.transaction() as session:
        job = make_job(session, project_id, suffix=suffix, status="succeeded", stage="publish")
        adapter = make_adapter(session, job, bytes=len(TAR), sha256=hashlib.sha256(TAR).hexdigest())
    storage.put(adapter.storage_key, TAR)
    return adapter


def test_nothing_yet(user: Browser) -> None:
    assert "Nothing was released yet" in user.get("/app/models").text


def test_list_download_delete(user: Browser, database: Database, storage: Storage, tenant: Tenant) -> None:
    adapter = _release(database, storage, tenant.project_id, "mine")
    assert adapter.model_id in user.get("/app/models").text
    answer = user.get(f"/app/jobs/{adapter.job_id}/adapter")
    assert answer.content == TAR
    assert "attachment" in answer.headers["content-disposition"]
    part = user.get(f"/app/jobs/{adapter.job_id}/adapter", headers={"range": "bytes=10-19"})
    assert (part.status_code, part.content) == (206, TAR[10:20])
    assert user.post(f"/app/models/{adapter.job_id}/delete").status_code == 303
    assert adapter.model_id not in user.get("/app/models").text
    assert user.get(f"/app/jobs/{adapter.job_id}/adapter").status_code == 404


def test_other_projects_models_are_not_there(user: Browser, database: Database, storage: Storage) -> None:
    stranger = make_tenant(database, name="Stranger")
    adapter = _release(database, storage, stranger.project_id, "secret")
    assert "secret" not in user.get("/app/models").text
    assert user.get(f"/app/jobs/{adapter.job_id}/adapter").status_code == 404
    assert user.post(f"/app/models/{adapter.job_id}/delete").status_code == 404
    assert "Nothing older" in user.get(f"/app/models?after={adapter.model_id}").text


def test_pages(
    user: Browser,
    database: Database,
    storage: Storage,
    tenant: Tenant,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("service.dashboard.user_models.MODELS_PER_PAGE", 1)
    old = _release(database, storage, tenant.project_id, "old")
    new = _release(database, storage, tenant.project_id, "new")
    first = user.get("/app/models").text
    assert new.model_id in first
    assert old.model_id not in first
    assert old.model_id in user.get(f"/app/models?after={new.model_id}").text
