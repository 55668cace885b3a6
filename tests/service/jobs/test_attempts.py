"""Rows of attempts on both databases: what is written with a claim, an ending and a lost worker."""

from __future__ import annotations

from typing import Any

import pytest

from service.db import Database
from service.jobs import attempts, lease
from service.jobs.attempts import ExitReason
from service.jobs.lease import Claim
from service.jobs.states import Stage
from service.jobs.transitions import LeaseLostError
from service.models import Job, JobAttempt
from tests.builders import Tenant, make_queued_job
from workers.endings import Cancelled, Died, Drained, Ending, Finished
from workers.messages import Failed
from workers.record import JobRecord


def claimed(database: Database, job_id: str, *, worker: str = "w1", now: float = 100.0) -> Claim:
    with database.transaction() as session:
        claim = lease.claim(session, job_id, owner=worker, ttl_seconds=10.0, max_attempts=9, now=now)
    assert claim is not None
    return claim


def rows(database: Database, job_id: str) -> list[JobAttempt]:
    with database.snapshot() as session:
        return attempts.list_attempts(session, job_id)


def conclude(database: Database, claim: Claim, ending: Ending, *, log_tail: str = "log\n") -> None:
    record = JobRecord(database, claim, model_id="ft:x", lease_ttl_seconds=10.0, max_attempts=9)
    record.conclude(ending, log_tail=log_tail)


@pytest.fixture
def job_id(database: Database, tenant: Tenant) -> str:
    with database.transaction() as session:
        return make_queued_job(session, tenant.project_id).id


def test_a_claim_begins_one(database: Database, job_id: str) -> None:
    claim = claimed(database, job_id, worker="gpu-7:12")
    (row,) = rows(database, job_id)
    assert (row.fencing_number, row.worker, row.first_stage) == (claim.fencing_number, "gpu-7:12", "prepare")
    assert (row.started_at, row.ended_at, row.exit_reason, row.log_tail) == (100.0, None, None, None)


@pytest.mark.parametrize(
    ("ending", "expected"),
    [
        (Died(-9), ("died", -9, None)),
        (Died(1), ("died", 1, None)),
        (Drained(), ("drained", None, None)),
        (Cancelled(), ("cancelled", None, None)),
        (Finished(Failed(code="invalid_lora", message="no")), ("failed", None, "invalid_lora")),
    ],
    ids=str,
)
def test_its_end_says_why(database: Database, job_id: str, ending: Ending, expected: tuple[Any, ...]) -> None:
    claim = claimed(database, job_id)
    with database.transaction() as session:
        lease.finish_stage(session, claim, Stage.PREPARE, output={}, now=101.0)
    conclude(database, claim, ending)
    (row,) = rows(database, job_id)
    assert (row.exit_reason, row.exit_code, row.error_code) == expected
    assert (row.first_stage, row.last_stage, row.log_tail) == ("prepare", "train", "log\n")
    assert row.ended_at is not None
    assert row.log_expires_at == row.ended_at + attempts.LOG_KEPT_SECONDS


def test_a_cancel_that_came_in_time_is_what_ended_it(database: Database, job_id: str) -> None:
    claim = claimed(database, job_id)
    with database.transaction() as session:
        session.get_one(Job, job_id).cancel_requested_at = 101.0
    conclude(database, claim, Died(-9))
    assert [row.exit_reason for row in rows(database, job_id)] == ["cancelled"]


def test_a_lost_worker_ends_none_and_its_successor_has_its_own(database: Database, job_id: str) -> None:
    lost = claimed(database, job_id)
    with database.transaction() as session:
        (job,) = lease.expired(session, now=111.0)
        lease.reap(session, job, max_attempts=9, now=111.0)
    new = claimed(database, job_id, worker="w2", now=112.0)
    with pytest.raises(LeaseLostError):
        conclude(database, lost, Died(1), log_tail="of the lost one")
    newest, oldest = rows(database, job_id)
    assert (oldest.exit_reason, oldest.ended_at, oldest.log_tail) == ("lost_lease", 111.0, None)
    assert (newest.fencing_number, newest.worker, newest.exit_reason) == (new.fencing_number, "w2", None)


def test_a_drained_attempt_is_a_row_although_it_does_not_count(database: Database, job_id: str) -> None:
    for _ in range(3):
        conclude(database, claimed(database, job_id), Drained())
    assert [row.exit_reason for row in rows(database, job_id)] == ["drained"] * 3
    with database.snapshot() as session:
        assert session.get_one(Job, job_id).attempt_count == 0


def test_old_attempts_and_old_logs_go(
    database: Database, job_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempts, "KEPT_ATTEMPTS", 2)
    for _ in range(4):
        conclude(database, claimed(database, job_id), Drained())
    kept = rows(database, job_id)
    assert [row.fencing_number for row in kept] == [4, 3]

    expires_at = kept[1].log_expires_at
    assert expires_at is not None
    with database.transaction() as session:
        assert attempts.forget_logs(session, now=expires_at - 1) == 0
        assert attempts.forget_logs(session, now=expires_at) == 1
        assert attempts.forget_logs(session, now=expires_at) == 0
    newest, oldest = rows(database, job_id)
    assert (newest.log_tail, oldest.log_tail) == ("log\n", None)
    assert oldest.exit_reason == "drained"


def test_an_end_is_written_once(database: Database, job_id: str) -> None:
    claim = claimed(database, job_id)
    with database.transaction() as session:
        for reason in (ExitReason.LOST_LEASE, ExitReason.CANCELLED):
            attempts.end(session, job_id, claim.fencing_number, reason=reason, stage=Stage.PREPARE, now=101.0)
    assert [row.exit_reason for row in rows(database, job_id)] == ["lost_lease"]
