from __future__ import annotations

import time

import pytest
from sqlalchemy import select

from service.dashboard.queries import tenants
from service.db import Database
from service.models import ApiKey, GpuUsage, OperatorKey, ProjectQuota
from service.quotas.limits import default_quota
from service.quotas.service import quotas_in_use
from service.quotas.usage import day_of
from service.settings import Settings
from tests.builders import (
    Tenant,
    audit_entries,
    make_adapter,
    make_file,
    make_job,
    make_part,
    make_tenant,
    make_upload,
)
from tests.service.dashboard.conftest import Browser


def test_no_project_yet(operator: Browser) -> None:
    assert "There is no project yet" in operator.get("/dashboard/tenants").text


def test_usage_of_all_is_what_each_is_told(database: Database, tenant: Tenant, settings: Settings) -> None:
    """The grouped queries count as `service.quotas` does."""
    other, now = make_tenant(database, name="Globex"), time.time()
    with database.transaction() as session:
        make_file(session, tenant.project_id, bytes=1000)
        make_file(session, tenant.project_id, bytes=5000, deleted_at=now)
        make_part(session, make_upload(session, tenant.project_id), bytes=30)
        make_part(session, make_upload(session, tenant.project_id, status="cancelled"), bytes=70)
        done = make_job(session, tenant.project_id, status="succeeded", stage="publish")
        make_adapter(session, done, bytes=200)
        make_job(session, tenant.project_id, status="running", stage="train", stage_began_at=now - 100)
        make_job(session, tenant.project_id, status="paused")
        make_job(session, other.project_id)
        session.add(GpuUsage(project_id=tenant.project_id, day=day_of(now), seconds=50.0))
        session.add(GpuUsage(project_id=tenant.project_id, day=day_of(now) - 40, seconds=5000.0))
    default = default_quota(settings)
    with database.snapshot() as session:
        lines = {line.project.id: line for line in tenants.all_tenants(session, default, now=now)}
        for project_id, line in lines.items():
            uses = quotas_in_use(session, project_id, default, now=now)
            assert line.storage_bytes == uses["storage_bytes"].used
            assert line.running == uses["concurrent_jobs"].used
            assert line.waiting == uses["queued_jobs"].used
            assert line.gpu_seconds == pytest.approx(uses["gpu_seconds"].used, abs=0.01)
    assert lines[tenant.project_id].gpu_seconds == pytest.approx(150, abs=0.01)
    assert lines[other.project_id].waiting == 1


def test_most_first_and_a_search(operator: Browser, database: Database, tenant: Tenant) -> None:
    other = make_tenant(database, name="Globex")
    with database.transaction() as session:
        make_file(session, other.project_id, bytes=10**9)
        session.add(GpuUsage(project_id=tenant.project_id, day=day_of(time.time()), seconds=7200.0))
    by_gpu, by_storage = (operator.get(f"/dashboard/tenants?order={o}").text for o in ("gpu", "storage"))
    assert by_gpu.index(tenant.project_id) < by_gpu.index(other.project_id)
    assert by_storage.index(other.project_id) < by_storage.index(tenant.project_id)
    assert "1.0 GB" in by_storage
    found = operator.get("/dashboard/tenants?q=glob").text
    assert other.project_id in found
    assert tenant.project_id not in found
    assert "No project matches" in operator.get("/dashboard/tenants?q=nobody").text


def test_failures_by_whose_turn_it_is(operator: Browser, database: Database, tenant: Tenant) -> None:
    with database.transaction() as session:
        for code in ("worker_lost", "worker_lost", "invalid_training_file", "base_mismatch"):
            newest = make_job(session, tenant.project_id, status="failed", stage="train", error_code=code)
        make_job(
            session, tenant.project_id, status="failed", stage="train", error_code="old_one", created_at=1.0
        )
    page = operator.get(f"/dashboard/tenants/{tenant.project_id}").text
    assert page.index("worker_lost") < page.index("base_mismatch"), "the most frequent first"
    row = page.split("<code>base_mismatch")[1].split("</tr>")[0]
    assert "the operator&#39;s" in row
    assert newest.id in row
    assert "old_one" not in page
    assert "1 / 1 / " in operator.get("/dashboard/tenants").text


def test_a_project_that_is_not_there(operator: Browser) -> None:
    for answer in (
        operator.get("/dashboard/tenants/proj_none"),
        operator.post("/dashboard/tenants/proj_none/quota", {"gpu_seconds": "1"}),
        operator.post("/dashboard/tenants/proj_none/keys/key_none/revoke"),
    ):
        assert answer.status_code == 404


def test_setting_quotas(operator: Browser, database: Database, tenant: Tenant) -> None:
    path = f"/dashboard/tenants/{tenant.project_id}"
    answer = operator.post(f"{path}/quota", {"storage_bytes": "2 GB", "concurrent_jobs": "0"})
    assert answer.headers["location"] == f"{path}?done=quota"
    page = operator.get(answer.headers["location"]).text
    assert "The quotas are set" in page
    assert 'value="2000000000"' in page
    with database.snapshot() as session:
        own = session.get_one(ProjectQuota, tenant.project_id)
        assert (own.storage_bytes, own.concurrent_jobs, own.queued_jobs) == (2 * 10**9, 0, None)
        entry = audit_entries(session)[-1]
        key_id = session.scalars(select(OperatorKey.id)).one()
    assert (entry.action, entry.actor, entry.project_id) == ("quota.changed", key_id, tenant.project_id)
    assert entry.details == {"reset": True, "changes": {"storage_bytes": 2 * 10**9, "concurrent_jobs": 0}}
    # The form shows everything that is set: what is emptied there is the default again.
    operator.post(f"{path}/quota", {"storage_bytes": "2 GB"})
    operator.post(f"{path}/quota", {"storage_bytes": "2 GB"})
    with database.snapshot() as session:
        assert session.get_one(ProjectQuota, tenant.project_id).concurrent_jobs is None
        entries = [entry for entry in audit_entries(session) if entry.action == "quota.changed"]
        changes = [entry.details["changes"] for entry in entries]
    assert changes[1:] == [{"storage_bytes": 2 * 10**9}], "the second time changed nothing"


def test_a_quota_that_is_no_number_is_said_beside_its_field(
    operator: Browser, database: Database, tenant: Tenant
) -> None:
    path = f"/dashboard/tenants/{tenant.project_id}/quota"
    answer = operator.post(path, {"queued_jobs": "lots", "gpu_seconds": "5 h"})
    assert answer.status_code == 400
    assert "lots" in answer.text
    assert 'value="5 h"' in answer.text, "what was typed is still there"
    assert answer.text.count('aria-invalid="true"') == 1
    with database.snapshot() as session:
        assert session.get(ProjectQuota, tenant.project_id) is None


def test_revoking_a_key(operator: Browser, browser: Browser, database: Database, tenant: Tenant) -> None:
    browser.sign_in(tenant.key)
    with database.snapshot() as session:
        key_id = session.scalars(select(ApiKey.id)).one()
    path = f"/dashboard/tenants/{tenant.project_id}"
    page = operator.get(path).text
    assert tenant.key not in page
    assert tenant.key[:8] in page
    answer = operator.post(f"{path}/keys/{key_id}/revoke")
    assert answer.headers["location"] == f"{path}?done=revoked"
    assert 'data-state="bad">revoked' in operator.get(path).text
    assert operator.client.get("/v1/files", headers=tenant.headers).status_code == 401
    assert browser.get("/app/nothing").status_code == 303
    with database.snapshot() as session:
        entry = audit_entries(session)[-1]
    assert (entry.action, entry.object_id) == ("api_key.deleted", key_id)
    assert entry.actor.startswith("opkey_")


def test_a_key_of_another_project_is_not_there(operator: Browser, database: Database, tenant: Tenant) -> None:
    other = make_tenant(database)
    with database.snapshot() as session:
        key = session.scalars(select(ApiKey).where(ApiKey.project_id == other.project_id)).one()
    path = f"/dashboard/tenants/{tenant.project_id}/keys/{key.id}/revoke"
    assert operator.post(path).status_code == 404
    with database.snapshot() as session:
        assert session.get_one(ApiKey, key.id).revoked_at is None


@pytest.mark.parametrize("path", ["quota", "keys/{key}/revoke"])
def test_without_the_token_nothing_happens(
    operator: Browser, database: Database, tenant: Tenant, path: str
) -> None:
    with database.snapshot() as session:
        key_id = session.scalars(select(ApiKey.id)).one()
    url = f"/dashboard/tenants/{tenant.project_id}/{path.format(key=key_id)}"
    assert operator.post(url, {"gpu_seconds": "1"}, token="").status_code == 403
    with database.snapshot() as session:
        assert [entry.action for entry in audit_entries(session)] == ["operator_key.created"]
        assert session.get(ProjectQuota, tenant.project_id) is None
        assert session.get_one(ApiKey, key_id).revoked_at is None


def test_a_tenant_may_not(user: Browser, tenant: Tenant) -> None:
    answer = user.post(f"/dashboard/tenants/{tenant.project_id}/quota", {"storage_bytes": "0"})
    assert answer.status_code == 403
