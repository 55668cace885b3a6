from __future__ import annotations

import re
from html import unescape

import pytest

from service.dashboard import operator_jobs
from service.db import Database
from tests.builders import Tenant, make_job, make_tenant
from tests.service.dashboard.conftest import Browser
from tests.service.dashboard.rows import make_measured_job


def shown(page: str) -> list[str]:
    """Ids of the jobs, in order."""
    return re.findall(r'href="/dashboard/jobs/(ftjob-\w+)"', page)


def test_no_job_yet(operator: Browser) -> None:
    assert "No job has been created yet" in operator.get("/dashboard/jobs").text


def test_jobs_of_all_projects(operator: Browser, database: Database, tenant: Tenant) -> None:
    other = make_tenant(database, name="Globex")
    with database.transaction() as session:
        mine = make_measured_job(session, tenant.project_id, after=3.5)
        theirs = make_job(session, other.project_id, created_at=1.0, suffix="<b>&", error_code="worker_lost")
    page = operator.get("/dashboard/jobs").text
    assert shown(page) == [mine.id, theirs.id]
    assert "60.0 % → 3.5 %" in page
    assert "&lt;b&gt;&amp;" in page
    assert "Globex" in page


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("status=failed", "b"),
        ("base=other/base", "c"),
        ("project=globex", "b"),
        ("project={project}", "b"),
        ("project=nobody", ""),
        ("q=UNIQUE", "a"),
        ("q={id}", "c"),
        ("q=100%25", ""),
        ("q=_", ""),
        ("status=nonsense", "abc"),
        ("status=failed&project=globex&q=no_such", ""),
    ],
)
def test_filters(operator: Browser, database: Database, tenant: Tenant, query: str, found: str) -> None:
    other = make_tenant(database, name="Globex")
    with database.transaction() as session:
        jobs = {
            "a": make_job(session, tenant.project_id, created_at=3.0, suffix="my-unique-name"),
            "b": make_job(session, other.project_id, created_at=2.0, status="failed"),
            "c": make_job(session, tenant.project_id, created_at=1.0, base_id="other/base"),
        }
    path = query.format(project=other.project_id, id=jobs["c"].id[6:].lower())
    page = operator.get(f"/dashboard/jobs?{path}").text
    assert shown(page) == [jobs[name].id for name in found]
    assert found or "No job matches" in page


def test_pages_keep_the_filter(
    operator: Browser, database: Database, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operator_jobs, "JOBS_PER_PAGE", 2)
    with database.transaction() as session:
        ids = [make_job(session, tenant.project_id, created_at=9.0 - n, suffix="same_").id for n in range(5)]
        make_job(session, tenant.project_id, created_at=100.0)
    seen, path = [], "/dashboard/jobs?q=same_"
    while path:
        page = operator.get(path).text
        seen += shown(page)
        older = re.search(r'href="([^"]+)">Older', page)
        path = unescape(older[1]) if older else ""
    assert seen == ids
    assert ">Newest</a>" in page
    assert ">Newest</a>" not in operator.get("/dashboard/jobs?after=ftjob-gone").text
