from __future__ import annotations

import csv
import io
import re
import time
from html import unescape
from typing import Any

import pytest

from service.audit.log import Actor, record
from service.dashboard import operator_audit
from service.db import Database
from service.models import AuditEntry
from tests.builders import Tenant, make_tenant
from tests.service.dashboard.conftest import Browser


def write(database: Database, tenant: Tenant, **overrides: Any) -> None:
    values = {"actor": "key_x", "action": "test.done", "object": "thing", "now": time.time(), "details": {}}
    values |= overrides
    with database.transaction() as session:
        record(
            session,
            Actor(values["actor"], "203.0.113.7", "req_1"),
            values["action"],
            values["object"],
            organization_id=tenant.organization_id,
            project_id=tenant.project_id,
            now=values["now"],
            **values["details"],
        )


def objects(page: str) -> list[str]:
    return re.findall(r'<td class="mono nowrap" title="([^"]*)"', page)


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("action=test.done", ["b", "a"]),
        ("action=test.other", ["c"]),
        ("actor=operator&action=test.done", ["b"]),
        ("actor=key_x&action=test.done", ["a"]),
        ("project=globex&action=test.other", ["c"]),
        ("project=nobody", []),
        ("since=2001-01-02&until=2001-01-02", ["b"]),
        ("until=2001-01-01", ["a"]),
        ("since=9999-12-31", []),
    ],
)
def test_filters(operator: Browser, database: Database, tenant: Tenant, query: str, found: list[str]) -> None:
    day = 978_307_200.0  # 2001-01-01
    other = make_tenant(database, name="Globex")
    write(database, tenant, object="a", now=day + 1)
    write(database, tenant, object="b", actor="operator:root", now=day + 86_400 + 86_399)
    write(database, other, object="c", action="test.other")
    page = operator.get(f"/dashboard/audit?{query}").text
    assert objects(page) == found
    assert found or "No entry matches" in page


def test_a_day_that_is_none(operator: Browser) -> None:
    answer = operator.get("/dashboard/audit?since=yesterday")
    assert answer.status_code == 400
    assert "is no day such as 2026-11-21" in answer.text
    assert operator.get("/dashboard/audit.csv?since=yesterday").status_code == 400


def test_pages(
    operator: Browser, database: Database, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operator_audit, "ENTRIES_PER_PAGE", 2)
    for number in range(5):
        write(database, tenant, object=f"o{number}")
    seen, path = [], "/dashboard/audit?action=test.done"
    while path:
        page = operator.get(path).text
        seen += objects(page)
        older = re.search(r'href="([^"]+)">Older', page)
        path = unescape(older[1]) if older else ""
    assert seen == ["o4", "o3", "o2", "o1", "o0"]


def test_keys_are_named(operator: Browser, database: Database, tenant: Tenant) -> None:
    with database.snapshot() as session:
        made = session.query(AuditEntry).filter_by(action="api_key.created").one()
    write(database, tenant, actor=made.object_id, details={"scopes": ["files:read"], "all": False})
    page = operator.get("/dashboard/audit?action=test.done").text
    assert "Tests" in page
    assert made.object_id in page
    assert "files:read" in page
    assert "no" in page.split("all</span>")[1][:10]


def test_the_csv_holds_what_the_filter_lets_through(
    operator: Browser, database: Database, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.dashboard.queries.audit.ENTRIES_AT_ONCE", 2)
    for number in range(5):
        write(database, tenant, object=f"o{number}", details={"reason": 'a "b"\nc'})
    write(database, tenant, object='=HYPERLINK("http://evil.example")', details={"x": 1})
    answer = operator.get("/dashboard/audit.csv?action=test.done")
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    assert "attachment" in answer.headers["content-disposition"]
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    assert [row["object_id"] for row in rows[1:]] == ["o4", "o3", "o2", "o1", "o0"]
    assert rows[0]["object_id"].startswith("'=HYPERLINK")
    assert rows[1]["details"] == '{"reason": "a \\"b\\"\\nc"}'
    assert rows[1]["project_id"] == tenant.project_id
    monkeypatch.setattr(operator_audit, "MOST_CSV_ROWS", 3)
    assert len(operator.get("/dashboard/audit.csv").text.strip().splitlines()) == 4
