from __future__ import annotations

import time

from alembic import command
from sqlalchemy import select

from service import schema
from service.db import Database
from service.jobs import lease
from service.jobs.states import Stage
from service.jobs.transitions import fail
from service.models import SafetyFigures
from service.safety.figures import columns
from tests.builders import Tenant, make_queued_job
from tests.service.dashboard.rows import make_measured_job, report


def figures(database: Database) -> list[SafetyFigures]:
    with database.snapshot() as session:
        return list(session.scalars(select(SafetyFigures)))


def test_they_are_written_with_the_report(database: Database, tenant: Tenant) -> None:
    with database.transaction() as session:
        job = make_queued_job(session, tenant.project_id, stage="evaluate")
        claim = lease.claim(session, job.id, owner="w", ttl_seconds=60, max_attempts=3, now=time.time())
        assert claim is not None
    assert figures(database) == []
    with database.transaction() as session:
        lease.finish_stage(
            session, claim, Stage.EVALUATE, output={}, now=5.0, safety_report=report(after=4.0)
        )
    (row,) = figures(database)
    assert (row.job_id, row.measured_at) == (job.id, 5.0)
    assert (row.harmful_before, row.harmful_after) == (60.0, 4.0)
    assert (row.control_harmful, row.control_undecided, row.control_prompts) == (12.0, 1, 50)
    # A later report of the same job wins.
    refused = report(after=40.0, result="refused")
    with database.transaction() as session:
        fail(
            session,
            job.id,
            Stage.PUBLISH,
            code="safety_gate_failed",
            message="no",
            param=None,
            now=9.0,
            values={"safety_report": refused},
        )
    (row,) = figures(database)
    assert (row.result, row.harmful_after, row.measured_at) == ("refused", 40.0, 9.0)


def test_reports_that_are_there_already_are_read_by_the_migration(
    database: Database, database_url: str, tenant: Tenant
) -> None:
    with database.transaction() as session:
        make_measured_job(session, tenant.project_id, at=7.0)
        make_measured_job(session, tenant.project_id, at=8.0, result="waived")
        make_queued_job(session, tenant.project_id)

    def as_written() -> list[tuple[object, ...]]:
        with database.snapshot() as session:
            rows = session.execute(select(SafetyFigures.__table__).order_by(SafetyFigures.job_id))
            return [tuple(row) for row in rows]

    before = as_written()
    assert len(before) == 2
    schema._on_connection(database.engine, lambda config: command.downgrade(config, "0010"))
    schema._on_connection(database.engine, lambda config: command.upgrade(config, "head"))
    assert as_written() == before


def test_known_answers_are_a_control_of_their_own() -> None:
    def judging(control_sha256: str) -> dict[str, object]:
        calibration = {"num_rows": 120, "false_positives": 3, "false_negatives": 1}
        return {"judging": {"control_sha256": control_sha256, "calibration": calibration}}

    without = columns(report())
    one, other = (columns(report() | judging(digest * 64)) for digest in "ab")
    assert (without["num_known"], without["false_positives"], without["false_negatives"]) == (
        None,
        None,
        None,
    )
    assert (one["num_known"], one["false_positives"], one["false_negatives"]) == (120, 3, 1)
    assert len({each["control_key"] for each in (without, one, other)}) == 3
    assert columns(report() | {"judging": {"control_sha256": None, "calibration": None}}) == without


def test_a_report_of_an_older_version() -> None:
    """Without controls, without a result: what is not there is null."""
    old = {
        "gate": {"passed": True},
        "measurements": {"before": {"harmful_score": 50.0}, "after": {"harmful_score": 1.0}},
    }
    found = columns(old)
    assert found["result"] == "passed"
    assert found["control_harmful"] is None
    assert found["control_key"] is None
    assert columns({})["result"] == "refused"


def test_the_control_is_the_same_only_for_the_same_base_profile_and_judge() -> None:
    key = columns(report())["control_key"]
    assert columns(report(before=1.0, after=0.0))["control_key"] == key
    assert columns(report() | {"judge": "exact"})["control_key"] != key
    assert columns(report() | {"base": {"id": "a", "sha256": "d"}})["control_key"] != key
    assert columns(report() | {"data": {"safety_profile_sha256": {"realign": "e"}}})["control_key"] != key


def test_long_names_are_cut() -> None:
    found = columns(report() | {"safety_profile_version": "v" * 1000, "judge": "j" * 1000})
    assert len(found["profile_version"]) == 255
    assert len(found["judge"]) == 64
