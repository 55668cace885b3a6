"""Claims, leases and fencing numbers on both databases, also when several workers want the same job."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import inspect, select

from service.adapters.release import new_model_id, release
from service.db import Database
from service.jobs import lease
from service.jobs.lease import Claim
from service.jobs.states import STAGES, Stage
from service.jobs.transitions import LeaseLostError
from service.jobs.unheard import silent
from service.models import Adapter, Job, JobEvent, OutboxMessage
from tests.builders import Tenant, get_job, make_queued_job


def queued(database: Database, tenant: Tenant, **overrides: Any) -> str:
    with database.transaction() as session:
        return make_queued_job(session, tenant.project_id, **overrides).id


def take(database: Database, job_id: str, *, owner: str = "w1", now: float = 100.0) -> Claim | None:
    with database.transaction() as session:
        return lease.claim(session, job_id, owner=owner, ttl_seconds=10.0, max_attempts=3, now=now)


def taken(database: Database, job_id: str, *, owner: str = "w1", now: float = 100.0) -> Claim:
    claim = take(database, job_id, owner=owner, now=now)
    assert claim is not None
    return claim


def at_once(functions: list[Callable[[], Any]]) -> list[Any]:
    """Run all at the same time; results in order, exceptions as values."""
    barrier = threading.Barrier(len(functions))
    results: list[Any] = [None] * len(functions)

    def run(index: int) -> None:
        barrier.wait()
        try:
            results[index] = functions[index]()
        except Exception as error:
            results[index] = error

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(functions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_a_claim_starts_the_job(database: Database, tenant: Tenant) -> None:
    job_id = queued(database, tenant)
    claim = taken(database, job_id)
    assert claim == Claim(job_id, "w1", fencing_number=1, stage=Stage.PREPARE, attempt=1)
    job = get_job(database, job_id)
    assert (job.status, job.lease_owner, job.lease_expires_at) == ("running", "w1", 110.0)
    assert (job.started_at, job.attempt_count) == (100.0, 1)


def test_of_many_workers_exactly_one_gets_the_job(database: Database, tenant: Tenant) -> None:
    job_id = queued(database, tenant)
    claims = at_once([lambda i=i: take(database, job_id, owner=f"w{i}") for i in range(6)])
    winners = [claim for claim in claims if claim is not None]
    assert len(winners) == 1, claims
    job = get_job(database, job_id)
    assert (job.lease_owner, job.fencing_number, job.attempt_count) == (winners[0].owner, 1, 1)


@pytest.mark.parametrize(
    "state",
    [
        {"status": "running"},
        {"status": "paused"},
        {"status": "succeeded"},
        {"status": "failed"},
        {"status": "cancelled"},
        {"status": "validating_files"},
        {"cancel_requested_at": 1.0},
        {"attempt_count": 3},
    ],
    ids=str,
)
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_nothing_else_than_a_waiting_job_can_be_claimed(
    database: Database, tenant: Tenant, state: dict[str, Any]
) -> None:
    job_id = queued(database, tenant, **state)
    assert take(database, job_id) is None
    assert get_job(database, job_id).fencing_number == 0


def test_a_heartbeat_extends_the_lease_and_brings_the_cancel(database: Database, tenant: Tenant) -> None:
    claim = taken(database, queued(database, tenant))
    with database.transaction() as session:
        assert lease.heartbeat(session, claim, ttl_seconds=10.0, now=105.0) is None
        session.get_one(Job, claim.job_id).cancel_requested_at = 106.0
    with database.transaction() as session:
        assert lease.heartbeat(session, claim, ttl_seconds=10.0, now=107.0) is lease.StopRequest.CANCEL
    assert get_job(database, claim.job_id).lease_expires_at == 117.0


def test_a_worker_that_lost_its_lease_writes_nothing(database: Database, tenant: Tenant) -> None:
    """It slept through its lease; the job was reaped and another worker has it now."""
    job_id = queued(database, tenant)
    old = taken(database, job_id)
    with database.transaction() as session:
        (job,) = lease.expired(session, now=111.0)
        lease.reap(session, job, max_attempts=3, now=111.0)
    new = taken(database, job_id, owner="w2", now=112.0)
    assert new.fencing_number > old.fencing_number
    before = get_job(database, job_id)

    writes: list[Callable[[Any], Any]] = [
        lambda s: lease.heartbeat(s, old, ttl_seconds=10.0, now=113.0),
        lambda s: lease.asked(s, old),
        lambda s: lease.write(s, old, progress={"step": 1}),
        lambda s: lease.finish_stage(s, old, Stage.PREPARE, output={}, now=113.0),
        lambda s: lease.hand_back(s, old, reason="x", now=113.0),
    ]
    for write in writes:
        with pytest.raises(LeaseLostError), database.transaction() as session:
            write(session)
    after = get_job(database, job_id)
    names = [attribute.key for attribute in inspect(Job).column_attrs]
    assert {n: getattr(after, n) for n in names} == {n: getattr(before, n) for n in names}


def test_stages_follow_each_other_and_keep_their_outputs(database: Database, tenant: Tenant) -> None:
    claim = taken(database, queued(database, tenant))
    for stage in STAGES[:-1]:
        with database.transaction() as session:
            lease.finish_stage(session, claim, stage, output={"n": stage.value}, now=101.0)
    job = get_job(database, claim.job_id)
    assert (job.status, job.stage) == ("running", "publish")
    assert job.stage_outputs == {stage.value: {"n": stage.value} for stage in STAGES[:-1]}


def test_no_stage_can_be_skipped(database: Database, tenant: Tenant) -> None:
    claim = taken(database, queued(database, tenant))
    with pytest.raises(LeaseLostError), database.transaction() as session:
        lease.finish_stage(session, claim, Stage.TRAIN, output={}, now=101.0)
    assert get_job(database, claim.job_id).stage == "prepare"


def test_handing_back_keeps_the_stage_and_rings_again(database: Database, tenant: Tenant) -> None:
    claim = taken(database, queued(database, tenant))
    with database.transaction() as session:
        lease.finish_stage(session, claim, Stage.PREPARE, output={"rows": 3}, now=101.0)
        lease.hand_back(session, claim, reason="the worker is drained", now=102.0, count_attempt=False)
    job = get_job(database, claim.job_id)
    assert (job.status, job.stage, job.attempt_count, job.lease_owner) == ("queued", "train", 0, None)
    with database.snapshot() as session:
        assert len(session.scalars(select(OutboxMessage)).all()) == 2
        last = session.scalars(select(JobEvent).order_by(JobEvent.sequence.desc())).first()
        assert last is not None
        assert (last.level, last.message) == ("warn", "Back in the queue: the worker is drained")
    again = taken(database, claim.job_id, owner="w2")
    assert (again.stage, again.attempt, again.fencing_number) == (Stage.TRAIN, 1, 2)


def test_only_expired_leases_are_reaped(database: Database, tenant: Tenant) -> None:
    taken(database, queued(database, tenant), now=100.0)
    late = taken(database, queued(database, tenant), now=90.0)
    queued(database, tenant)
    with database.transaction() as session:
        assert [job.id for job in lease.expired(session, now=105.0)] == [late.job_id]


def test_a_job_whose_workers_keep_dying_fails_by_name(database: Database, tenant: Tenant) -> None:
    job_id = queued(database, tenant)
    for attempt in (1, 2, 3):
        assert taken(database, job_id, now=100.0 * attempt).attempt == attempt
        with database.transaction() as session:
            (job,) = lease.expired(session, now=100.0 * attempt + 11)
            lease.reap(session, job, max_attempts=3, now=100.0 * attempt + 11)
    job = get_job(database, job_id)
    assert (job.status, job.error_code, job.lease_owner) == ("failed", "worker_lost", None)
    assert "3 times" in (job.error_message or "")


def test_a_lost_job_that_was_to_be_cancelled_is_cancelled(database: Database, tenant: Tenant) -> None:
    claim = taken(database, queued(database, tenant))
    with database.transaction() as session:
        session.get_one(Job, claim.job_id).cancel_requested_at = 105.0
    with database.transaction() as session:
        (job,) = lease.expired(session, now=111.0)
        lease.reap(session, job, max_attempts=3, now=111.0)
    assert get_job(database, claim.job_id).status == "cancelled"


def test_several_reapers_reap_once(database: Database, tenant: Tenant) -> None:
    job_id = queued(database, tenant)
    taken(database, job_id)

    def reap() -> int:
        with database.transaction() as session:
            jobs = lease.expired(session, now=111.0)
            for job in jobs:
                lease.reap(session, job, max_attempts=3, now=111.0)
            return len(jobs)

    assert sorted(at_once([reap] * 4)) == [0, 0, 0, 1]
    assert get_job(database, job_id).status == "queued"


def test_jobs_whose_doorbell_nobody_heard_are_found(database: Database, tenant: Tenant) -> None:
    unheard = queued(database, tenant, created_at=10.0)
    queued(database, tenant, created_at=90.0)
    taken(database, queued(database, tenant, created_at=10.0))
    with database.snapshot() as session:
        assert silent(session, rung_before=50.0) == [unheard]


def publish(database: Database, claim: Claim) -> None:
    with database.transaction() as session:
        job = session.get_one(Job, claim.job_id)
        release(
            session,
            claim,
            model_id=new_model_id(job),
            storage_key="adapters/x/1.tar",
            num_bytes=4,
            sha256="c" * 64,
            safety_report={"summary": {}},
            now=200.0,
        )


def test_a_release_ends_the_job_and_names_the_model(database: Database, tenant: Tenant) -> None:
    claim = taken(database, queued(database, tenant, suffix="mine"))
    for stage in STAGES[:-1]:
        with database.transaction() as session:
            lease.finish_stage(session, claim, stage, output={}, now=101.0)
    publish(database, claim)
    job = get_job(database, claim.job_id)
    assert (job.status, job.finished_at, job.safety_report) == ("succeeded", 200.0, {"summary": {}})
    with database.snapshot() as session:
        adapter = session.scalars(select(Adapter)).one()
    assert adapter.model_id.startswith(f"ft:{job.base_id}:{tenant.organization_id}:mine:")
    assert adapter.project_id == tenant.project_id


@pytest.mark.parametrize("num_stages", range(4))
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_nothing_is_released_before_every_stage_was_run(
    database: Database, tenant: Tenant, num_stages: int
) -> None:
    claim = taken(database, queued(database, tenant))
    for stage in STAGES[:num_stages]:
        with database.transaction() as session:
            lease.finish_stage(session, claim, stage, output={}, now=101.0)
    with pytest.raises((LeaseLostError, AssertionError)):
        publish(database, claim)
    with database.snapshot() as session:
        assert session.scalars(select(Adapter)).all() == []


def test_a_lost_lease_releases_nothing(database: Database, tenant: Tenant) -> None:
    claim = taken(database, queued(database, tenant))
    for stage in STAGES[:-1]:
        with database.transaction() as session:
            lease.finish_stage(session, claim, stage, output={}, now=101.0)
    with database.transaction() as session:
        (job,) = lease.expired(session, now=111.0)
        lease.reap(session, job, max_attempts=3, now=111.0)
    with pytest.raises(LeaseLostError):
        publish(database, claim)
    with database.snapshot() as session:
        assert session.scalars(select(Adapter)).all() == []
