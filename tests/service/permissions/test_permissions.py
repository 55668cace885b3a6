"""A released model shared with other projects: with OpenAI's client, and what the others see of it."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import openai
import pytest
from fastapi.testclient import TestClient
from openai import AsyncOpenAI, OpenAI
from sqlalchemy import func, select

from service.db import Database
from service.models import Adapter, CheckpointPermission
from service.storage import Storage
from tests.builders import Tenant, make_adapter, make_admin, make_job, make_sibling, make_tenant


@dataclass(frozen=True)
class Shared:
    model: str
    job_id: str
    owner: Tenant
    sibling: Tenant
    admin: dict[str, str]

    @property
    def admin_key(self) -> str:
        return self.admin["Authorization"].removeprefix("Bearer ")

    @property
    def url(self) -> str:
        return f"/fine_tuning/checkpoints/{self.model}/permissions"


@pytest.fixture
def shared(database: Database, storage: Storage, tenant: Tenant) -> Shared:
    with database.transaction() as session:
        job = make_job(session, tenant.project_id, status="succeeded", stage="publish")
        adapter = make_adapter(session, job)
    storage.put(adapter.storage_key, b"data")
    return Shared(
        adapter.model_id,
        job.id,
        tenant,
        make_sibling(database, tenant),
        make_admin(database, tenant.organization_id),
    )


def seen(client: TestClient, shared: Shared, who: Tenant) -> tuple[bool, int, int]:
    models = client.get("/models", headers=who.headers).json()["data"]
    return (
        shared.model in [model["id"] for model in models],
        client.get(f"/models/{shared.model}", headers=who.headers).status_code,
        client.get(f"/models/{shared.model}/adapter", headers=who.headers).status_code,
    )


def test_granting_shows_the_model_and_revoking_hides_it(
    client: TestClient, database: Database, shared: Shared
) -> None:
    stranger = make_tenant(database)
    cousin = make_sibling(database, shared.owner)
    assert seen(client, shared, shared.owner) == (True, 200, 200)
    assert seen(client, shared, shared.sibling) == (False, 404, 404)

    answer = client.post(shared.url, headers=shared.admin, json={"project_ids": [shared.sibling.project_id]})
    assert answer.status_code == 200, answer.text
    assert seen(client, shared, shared.sibling) == (True, 200, 200)
    assert seen(client, shared, shared.owner) == (True, 200, 200)
    assert seen(client, shared, stranger) == seen(client, shared, cousin) == (False, 404, 404)
    tar = client.get(f"/models/{shared.model}/adapter", headers=shared.sibling.headers)
    own = client.get(f"/fine_tuning/jobs/{shared.job_id}/adapter", headers=shared.owner.headers)
    assert tar.content == own.content == b"data"
    for name in ("content-type", "content-length", "etag", "content-disposition", "cache-control"):
        assert tar.headers[name] == own.headers[name]
    # The rest of the job stays its owner's.
    for path in ("", "/adapter", "/events", "/safety_report"):
        url = f"/fine_tuning/jobs/{shared.job_id}{path}"
        assert client.get(url, headers=shared.sibling.headers).status_code == 404

    permission_id = answer.json()["data"][0]["id"]
    gone = client.delete(f"{shared.url}/{permission_id}", headers=shared.admin)
    assert gone.json() == {"id": permission_id, "object": "checkpoint.permission", "deleted": True}
    assert seen(client, shared, shared.sibling) == (False, 404, 404)
    again = client.delete(f"{shared.url}/{permission_id}", headers=shared.admin)
    assert (again.status_code, again.json()["error"]["code"]) == (404, "permission_not_found")


def test_a_grant_to_the_owner_shows_the_model_once(client: TestClient, shared: Shared) -> None:
    client.post(shared.url, headers=shared.admin, json={"project_ids": [shared.owner.project_id]})
    models = client.get("/models", headers=shared.owner.headers).json()["data"]
    assert [model["id"] for model in models].count(shared.model) == 1
    assert client.get(f"/models/{shared.model}", headers=shared.owner.headers).status_code == 200


def test_a_deleted_model_is_gone_for_all(client: TestClient, database: Database, shared: Shared) -> None:
    body = {"project_ids": [shared.sibling.project_id]}
    assert client.post(shared.url, headers=shared.admin, json=body).status_code == 200
    with database.transaction() as session:
        session.get_one(Adapter, shared.model).deleted_at = 1.0
    assert seen(client, shared, shared.sibling) == (False, 404, 404)
    answer = client.post(shared.url, headers=shared.admin, json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")


def test_all_or_none(client: TestClient, database: Database, shared: Shared) -> None:
    foreign = make_tenant(database).project_id
    for project_id in (foreign, "proj_never"):
        body = {"project_ids": [shared.sibling.project_id, project_id]}
        error = client.post(shared.url, headers=shared.admin, json=body).json()["error"]
        assert (error["code"], error["param"]) == ("project_not_found", "project_ids")
        assert project_id in error["message"]
    assert client.get(shared.url, headers=shared.admin).json()["data"] == []
    for bad in ({}, {"project_ids": []}, {"project_ids": "proj_x"}, {"project_ids": ["a"], "x": 1}):
        assert client.post(shared.url, headers=shared.admin, json=bad).status_code == 400


def test_granting_twice_at_once_is_one_permission(
    client: TestClient, database: Database, shared: Shared
) -> None:
    body = {"project_ids": [shared.sibling.project_id, shared.sibling.project_id]}

    def grant(_: int) -> str:
        answer = client.post(shared.url, headers=shared.admin, json=body)
        assert answer.status_code == 200, answer.text
        (permission,) = answer.json()["data"]
        id: str = permission["id"]
        return id

    with ThreadPoolExecutor(4) as threads:
        assert len(set(threads.map(grant, range(8)))) == 1
    with database.snapshot() as session:
        assert session.scalar(select(func.count()).select_from(CheckpointPermission)) == 1


def test_permissions_of_another_model_are_not_found(
    client: TestClient, database: Database, shared: Shared
) -> None:
    with database.transaction() as session:
        job = make_job(session, shared.owner.project_id, status="succeeded", stage="publish")
        other = make_adapter(session, job).model_id
    body = {"project_ids": [shared.sibling.project_id]}
    url = f"/fine_tuning/checkpoints/{other}/permissions"
    permission_id = client.post(url, headers=shared.admin, json=body).json()["data"][0]["id"]
    for answer in (
        client.delete(f"{shared.url}/{permission_id}", headers=shared.admin),
        client.get(shared.url, headers=shared.admin, params={"after": permission_id}),
    ):
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "permission_not_found")
    assert len(client.get(url, headers=shared.admin).json()["data"]) == 1


def test_with_the_client(api_url: str, database: Database, shared: Shared) -> None:
    siblings = [make_sibling(database, shared.owner).project_id for _ in range(3)]
    with OpenAI(
        base_url=api_url, api_key=shared.admin_key, max_retries=0, _strict_response_validation=True
    ) as client:
        permissions = client.fine_tuning.checkpoints.permissions
        made = [permissions.create(shared.model, project_ids=[project_id]).data[0] for project_id in siblings]
        assert [permission.project_id for permission in made] == siblings
        both = permissions.create(shared.model, project_ids=siblings[:2])
        assert [permission.id for permission in both] == [made[0].id, made[1].id]

        # Pages of two, over every page.
        newest = list(permissions.list(shared.model, limit=2))
        assert [permission.id for permission in newest] == [permission.id for permission in made[::-1]]
        oldest = list(permissions.list(shared.model, limit=2, order="ascending"))
        assert [permission.id for permission in oldest] == [permission.id for permission in made]
        one = permissions.list(shared.model, project_id=siblings[1])
        assert [permission.id for permission in one] == [made[1].id]
        assert list(permissions.list(shared.model, project_id="proj_x")) == []
        with pytest.warns(DeprecationWarning, match="Retrieve is deprecated"):
            page = permissions.retrieve(shared.model, limit=1)
        assert (page.first_id, page.last_id, page.has_more) == (made[2].id, made[2].id, True)

        deleted = permissions.delete(made[0].id, fine_tuned_model_checkpoint=shared.model)
        assert (deleted.id, deleted.deleted) == (made[0].id, True)
        with pytest.raises(openai.NotFoundError):
            permissions.delete(made[0].id, fine_tuned_model_checkpoint=shared.model)
        with pytest.raises(openai.PermissionDeniedError) as caught:
            client.files.list()
        assert caught.value.code == "project_key_required"


def test_with_the_asynchronous_client(api_url: str, shared: Shared) -> None:
    async def use() -> None:
        async with AsyncOpenAI(
            base_url=api_url, api_key=shared.admin_key, max_retries=0, _strict_response_validation=True
        ) as client:
            permissions = client.fine_tuning.checkpoints.permissions
            page = await permissions.create(shared.model, project_ids=[shared.sibling.project_id])
            listed = [permission async for permission in permissions.list(shared.model)]
            assert [permission.id for permission in listed] == [page.data[0].id]
            with pytest.warns(DeprecationWarning, match="Retrieve is deprecated"):
                again = await permissions.retrieve(shared.model)
            assert again.data[0].project_id == shared.sibling.project_id
            gone = await permissions.delete(listed[0].id, fine_tuned_model_checkpoint=shared.model)
            assert gone.deleted

    asyncio.run(use())
