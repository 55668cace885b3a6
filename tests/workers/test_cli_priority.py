"""`autoclave admin priority`: what it shows, changes and refuses."""

from __future__ import annotations

import pytest
from sqlalchemy import select
from typer.testing import CliRunner

from service.db import Database
from service.models import AuditEntry, ProjectQueue
from tests.builders import Tenant, make_job
from workers.cli import app


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch, database_url: str) -> None:
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setenv("STORAGE_URL", "file:///nowhere")


def priority(*arguments: str, exit_code: int = 0) -> dict[str, str]:
    result = CliRunner().invoke(app, ["admin", "priority", *arguments])
    assert result.exit_code == exit_code, result.output
    return dict(line.split(" ", 1) for line in result.stdout.splitlines())


def test_show_and_change(database: Database, tenant: Tenant) -> None:
    usual = {"priority": "0", "worker_class": "any", "running": "0", "waiting": "0", "recent_seconds": "0.0"}
    assert priority(tenant.project_id) == usual
    with database.transaction() as session:
        make_job(session, tenant.project_id)
    changed = priority(tenant.project_id, "--set", "7", "--worker-class", "h100")
    assert changed == usual | {"priority": "7", "worker_class": "h100", "waiting": "1"}
    with database.snapshot() as session:
        row = session.get_one(ProjectQueue, tenant.project_id)
        assert (row.rank, row.worker_class) == (-7, "h100")
        entry = session.scalars(select(AuditEntry).where(AuditEntry.action == "priority.changed")).one()
    assert entry.details == {"priority": 7, "worker_class": "h100"}
    assert priority(tenant.project_id, "--worker-class", "any")["worker_class"] == "any"
    assert priority(tenant.project_id)["priority"] == "7"


def test_refusals(tenant: Tenant) -> None:
    priority("nobody", exit_code=2)
    priority(tenant.project_id, "--set", "101", exit_code=2)
    priority(tenant.project_id, "--worker-class", "H 100", exit_code=2)
