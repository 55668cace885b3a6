"""The page among a job's result files must never be what ends a job."""

from __future__ import annotations

import pytest
from sqlalchemy.exc import OperationalError

from service.db import Database
from tests.builders import Tenant, make_job
from workers import result_page
from workers.messages import Published

PUBLISHED = Published(storage_key="k", num_bytes=1, sha256="d" * 64, safety_report={"result": "passed"})

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


def failing(error: Exception) -> object:
    def fail(*_args: object, **_options: object) -> str:
        raise error

    return fail


def test_a_page(database: Database, tenant: Tenant) -> None:
    with database.transaction() as session:
        page = result_page.result_page(session, make_job(session, tenant.project_id), PUBLISHED)
    assert page is not None
    assert "Passed the safety gate" in page
    assert "d" * 64 in page


def test_a_page_that_cannot_be_drawn_is_left_out(
    database: Database, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(result_page, "render_released", failing(RuntimeError("a bug")))
    with database.transaction() as session:
        assert result_page.result_page(session, make_job(session, tenant.project_id), PUBLISHED) is None


def test_a_database_that_does_not_answer_is_asked_again_by_the_caller(
    database: Database, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(result_page, "render_released", failing(OperationalError("", {}, Exception())))
    with database.transaction() as session, pytest.raises(OperationalError):
        result_page.result_page(session, make_job(session, tenant.project_id), PUBLISHED)
