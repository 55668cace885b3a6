"""Two tenants, every operation: what belongs to the other is not there, and nothing of it changes."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import select

from service.db import Database
from service.jobs.events import add_event
from service.models import (
    Adapter,
    AdapterFile,
    AlignedBase,
    ApiKey,
    AuditEntry,
    BaseRegistration,
    CheckpointPermission,
    File,
    Job,
    JobCheckpoint,
    JobEvent,
    Upload,
    UploadPart,
    Webhook,
    WebhookDelivery,
)
from service.storage import Storage, part_key
from service.webhooks.announcements import add_delivery
from tests.builders import (
    BASE_ID,
    DATA_SHA256,
    Tenant,
    make_adapter,
    make_adapter_file,
    make_admin,
    make_base_registration,
    make_checkpoint,
    make_file,
    make_job,
    make_part,
    make_permission,
    make_tenant,
    make_upload,
    make_webhook,
)
from tests.service.operations import (
    ADMIN_COLLECTIONS,
    ADMIN_ID_OPERATIONS,
    BODIES,
    CATALOG_OPERATIONS,
    COLLECTIONS,
    CURSORS,
    ID_OPERATIONS,
    PUBLIC,
    REFUSED_TO_OWNER,
)


@pytest.fixture
def owned(database: Database, storage: Storage, tenant: Tenant) -> dict[str, str]:
    """Everything a tenant can have, as path parameters."""
    with database.transaction() as session:
        file = make_file(session, tenant.project_id, sha256=DATA_SHA256)
        storage.put(file.storage_key, b"data")
        job = make_job(
            session,
            tenant.project_id,
            training_file_id=file.id,
            status="succeeded",
            stage="publish",
            safety_report={"summary": {}},
        )
        add_event(session, job.id, "hello", now=1.0)
        adapter = make_adapter(session, job, signing_public_key="-----BEGIN PUBLIC KEY-----")
        member = make_adapter_file(session, adapter)
        storage.put(adapter.storage_key, b"data")
        upload = make_upload(session, tenant.project_id)
        part = make_part(session, upload)
        checkpoint = make_checkpoint(session, job)
        storage.put(part_key(upload.id, part.id), b"data")
        webhook = make_webhook(session, tenant.project_id)
        delivery = add_delivery(
            session,
            webhook,
            event_id="evt_1",
            type="fine_tuning.job.succeeded",
            job_id=job.id,
            now=1.0,
        )
        permission = make_permission(session, adapter, tenant.project_id)
        key_id = session.scalars(select(ApiKey.id).where(ApiKey.project_id == tenant.project_id)).one()
        return {
            "ckpt": adapter.model_id,
            "permission_id": permission.id,
            "project_id": tenant.project_id,
            "key_id": key_id,
            "file_id": file.id,
            "job_id": job.id,
            "model": adapter.model_id,
            "event_id": session.scalars(select(JobEvent.id).where(JobEvent.job_id == job.id)).one(),
            "upload_id": upload.id,
            "part_id": part.id,
            "webhook_id": webhook.id,
            "delivery_id": delivery.id,
            "name": member.name,
            "checkpoint_id": checkpoint.id,
            "base": BASE_ID,
            "registration_id": make_base_registration(session, tenant.organization_id).id,
        }


def rows(database: Database) -> list[Any]:
    with database.snapshot() as session:
        things = [
            {a.key: getattr(row, a.key) for a in table.__mapper__.column_attrs}
            for table in (
                Adapter,
                AdapterFile,
                AlignedBase,
                AuditEntry,
                BaseRegistration,
                CheckpointPermission,
                File,
                Job,
                JobCheckpoint,
                JobEvent,
                Upload,
                UploadPart,
                Webhook,
                WebhookDelivery,
            )
            for row in session.scalars(select(table))
        ]
        # Not when it was last used, which every request changes.
        keys = [(key.id, key.revoked_at) for key in session.scalars(select(ApiKey).order_by(ApiKey.id))]
        return [*things, *keys]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_the_lists_above_hold_every_route(client: TestClient) -> None:
    description = client.get("http://testserver/openapi.json").json()
    described = {
        (method.upper(), path)
        for path, operations in description["paths"].items()
        for method in operations
        if path.startswith("/v1")
    }
    assert described == {
        *ID_OPERATIONS,
        *COLLECTIONS,
        *PUBLIC,
        *ADMIN_ID_OPERATIONS,
        *ADMIN_COLLECTIONS,
        *CATALOG_OPERATIONS,
    }


@pytest.mark.parametrize(("method", "path"), ID_OPERATIONS)
def test_a_foreign_id_is_not_found(
    client: TestClient, database: Database, owned: dict[str, str], method: str, path: str
) -> None:
    stranger = make_tenant(database)
    before = rows(database)
    url = "http://testserver" + path.format(**owned)
    body = BODIES.get(path, {})
    foreign = client.request(method, url, headers=stranger.headers, **body)
    assert foreign.status_code == 404, foreign.text
    # And the same words as for an id that never existed.
    unknown = {name: "x" * len(value) for name, value in owned.items()}
    never = client.request(
        method, "http://testserver" + path.format(**unknown), headers=stranger.headers, **body
    )
    scrubbed = foreign.text
    for name, value in owned.items():
        scrubbed = scrubbed.replace(value, unknown[name])
    assert scrubbed == never.text
    assert rows(database) == before


@pytest.mark.parametrize(("method", "path"), ID_OPERATIONS)
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_the_owner_finds_each(
    client: TestClient, tenant: Tenant, owned: dict[str, str], method: str, path: str
) -> None:
    """So that the 404s above are about whose it is."""
    answer = client.request(
        method, "http://testserver" + path.format(**owned), headers=tenant.headers, **BODIES.get(path, {})
    )
    expected = 400 if path in REFUSED_TO_OWNER else 200
    assert answer.status_code == expected, answer.text


@pytest.mark.parametrize(
    ("method", "path"),
    ID_OPERATIONS + COLLECTIONS + ADMIN_ID_OPERATIONS + ADMIN_COLLECTIONS + CATALOG_OPERATIONS,
)
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_nothing_without_a_key(
    client: TestClient, database: Database, owned: dict[str, str], method: str, path: str
) -> None:
    """Nor is a body looked at: a malformed one makes no difference."""
    before = rows(database)
    answer = client.request(method, "http://testserver" + path.format(**owned), content=b"{malformed")
    assert answer.status_code == 401
    assert rows(database) == before


@pytest.mark.parametrize(("method", "path"), ADMIN_ID_OPERATIONS)
def test_a_foreign_admin_finds_nothing(
    client: TestClient, database: Database, owned: dict[str, str], method: str, path: str
) -> None:
    stranger = make_admin(database, make_tenant(database).organization_id)
    before = rows(database)
    body = BODIES.get(path, {}) if method == "POST" else {}
    url = "http://testserver" + path
    foreign = client.request(method, url.format(**owned), headers=stranger, **body)
    assert foreign.status_code == 404, foreign.text
    unknown = {name: "x" * len(value) for name, value in owned.items()}
    never = client.request(method, url.format(**unknown), headers=stranger, **body)
    scrubbed = foreign.text
    for name, value in owned.items():
        scrubbed = scrubbed.replace(value, unknown[name])
    assert scrubbed == never.text
    assert rows(database) == before


@pytest.mark.parametrize(("method", "path"), CATALOG_OPERATIONS)
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_an_organizations_admin_does_not_touch_the_servers_bases(
    client: TestClient, database: Database, tenant: Tenant, owned: dict[str, str], method: str, path: str
) -> None:
    """Nor is a body looked at."""
    owner = make_admin(database, tenant.organization_id)
    before = rows(database)
    answer = client.request(
        method, "http://testserver" + path.format(**owned), headers=owner, content=b"{malformed"
    )
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "insufficient_scope")
    assert rows(database) == before


@pytest.mark.parametrize(("method", "path"), ADMIN_ID_OPERATIONS + ADMIN_COLLECTIONS + CATALOG_OPERATIONS)
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_projects_key_administers_nothing(
    client: TestClient, database: Database, tenant: Tenant, owned: dict[str, str], method: str, path: str
) -> None:
    """Not even its own project, and no body is looked at."""
    before = rows(database)
    answer = client.request(
        method, "http://testserver" + path.format(**owned), headers=tenant.headers, content=b"{malformed"
    )
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "admin_key_required")
    assert rows(database) == before


@pytest.mark.parametrize(("method", "path"), ID_OPERATIONS + COLLECTIONS)
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_an_admin_key_reads_no_data(
    client: TestClient, database: Database, tenant: Tenant, owned: dict[str, str], method: str, path: str
) -> None:
    admin = make_admin(database, tenant.organization_id)
    before = rows(database)
    answer = client.request(
        method,
        "http://testserver" + path.format(**owned),
        headers=admin,
        content=b"{malformed",
    )
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "project_key_required")
    assert rows(database) == before


def test_lists_hold_only_ones_own(client: TestClient, database: Database, owned: dict[str, str]) -> None:
    stranger = make_tenant(database)
    assert client.get("/files", headers=stranger.headers).json()["data"] == []
    assert client.get("/fine_tuning/jobs", headers=stranger.headers).json()["data"] == []
    assert client.get("/webhooks", headers=stranger.headers).json()["data"] == []
    models = client.get("/models", headers=stranger.headers).json()["data"]
    assert [model["id"] for model in models] == [BASE_ID]


def test_foreign_ids_inside_requests(client: TestClient, database: Database, owned: dict[str, str]) -> None:
    stranger = make_tenant(database)
    with database.transaction() as session:
        own = make_file(session, stranger.project_id).id
        own_job = make_job(session, stranger.project_id).id
    for path, name in CURSORS:
        answer = client.get(
            f"http://testserver{path}", params={"after": owned[name]}, headers=stranger.headers
        )
        assert (answer.status_code, answer.json()["error"]["param"]) == (404, "after")
    answer = client.get(
        f"/fine_tuning/jobs/{own_job}/events",
        params={"after": owned["event_id"]},
        headers=stranger.headers,
    )
    assert (answer.status_code, answer.json()["error"]["param"]) == (404, "after")
    for body, param in (
        ({"training_file": owned["file_id"]}, "training_file"),
        ({"training_file": own, "validation_file": owned["file_id"]}, "validation_file"),
        ({"training_file": own, "model": owned["model"]}, "model"),
    ):
        answer = client.post("/fine_tuning/jobs", json={"model": BASE_ID, **body}, headers=stranger.headers)
        assert (answer.status_code, answer.json()["error"]["param"]) == (404, param)


def test_a_foreign_part_is_not_there(client: TestClient, database: Database, owned: dict[str, str]) -> None:
    """Neither in another project's upload nor in another upload of the same one."""
    stranger = make_tenant(database)
    with database.transaction() as session:
        upload_id = make_upload(session, stranger.project_id, bytes=4).id
    before = rows(database)
    answer = client.post(
        f"/uploads/{upload_id}/complete", json={"part_ids": [owned["part_id"]]}, headers=stranger.headers
    )
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (400, "part_ids", "invalid_part_ids")
    assert rows(database) == before


def test_a_foreign_delivery_is_not_there(
    client: TestClient, database: Database, owned: dict[str, str], tenant: Tenant
) -> None:
    """Neither in another project's webhook nor in another webhook of the same one."""
    stranger = make_tenant(database)
    with database.transaction() as session:
        others = [(who, make_webhook(session, who.project_id).id) for who in (stranger, tenant)]
    before = rows(database)
    for who, webhook_id in others:
        url = f"/webhooks/{webhook_id}/deliveries"
        answer = client.post(f"{url}/{owned['delivery_id']}/retry", headers=who.headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "delivery_not_found")
        answer = client.get(url, params={"after": owned["delivery_id"]}, headers=who.headers)
        assert (answer.status_code, answer.json()["error"]["param"]) == (404, "after")
    assert rows(database) == before


def test_an_idempotency_key_is_ones_own(client: TestClient, database: Database, tenant: Tenant) -> None:
    stranger = make_tenant(database)
    body = {"bytes": 1, "filename": "x", "mime_type": "x", "purpose": "user_data"}
    answers = [
        client.post("/uploads", json=body, headers={**who.headers, "idempotency-key": "k"})
        for who in (tenant, stranger)
    ]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert answers[0].json()["id"] != answers[1].json()["id"]
