"""Whose turn it is, on both databases; and what a project's row says after any sequence of deeds."""

from __future__ import annotations

import threading
import time
from collections import Counter

import pytest
from sqlalchemy import func, select

from service import outbox
from service.db import Database
from service.jobs import lease
from service.jobs.lease import Claim
from service.jobs.next_job import take_next
from service.jobs.service import cancel_job, pause_job
from service.jobs.states import Stage
from service.jobs.transitions import fail
from service.models import Job, OutboxMessage, ProjectQueue, ProjectQuota
from service.quotas.limits import Quota
from service.scheduling import lanes
from service.scheduling.workers import Kind
from tests.builders import Tenant, get_job, make_queued_job, make_tenant

NOW = 1_700_000_000.0


def queued(
    database: Database, tenant: Tenant, number: int, *, at: float = NOW, **columns: object
) -> list[str]:
    """Ids in the order of the queue; nothing is in the outbox afterwards."""
    with database.transaction() as session:
        job_ids = [
            make_queued_job(session, tenant.project_id, created_at=at + i, **columns).id
            for i in range(number)
        ]
        session.query(OutboxMessage).delete()
    return job_ids


def claim(
    database: Database, *, now: float = NOW, kind: Kind | None = None, limit: int = 0, max_attempts: int = 9
) -> Claim | None:
    return take_next(
        database,
        owner="w",
        ttl_seconds=60.0,
        max_attempts=max_attempts,
        now=now,
        kind=kind,
        default_quota=Quota(concurrent_jobs=limit),
    )


def claimed(database: Database, **more: object) -> str | None:
    held = claim(database, **more)  # type: ignore[arg-type]
    return None if held is None else held.job_id


def end(database: Database, held: Claim, *, now: float) -> None:
    with database.transaction() as session:
        fail(
            session,
            held.job_id,
            Stage.PREPARE,
            code="internal_error",
            message="x",
            param=None,
            now=now,
            fencing_number=held.fencing_number,
        )


def heard(database: Database) -> list[str]:
    """What the broker would deliver now."""
    with database.transaction() as session:
        messages = outbox.pending(session)
        for message in messages:
            message.sent_at = time.time()
        return [message.job_id for message in messages]


def set_queue(database: Database, tenant: Tenant, **values: object) -> None:
    with database.transaction() as session:
        row = lanes.locked(session, tenant.project_id)
        for name, value in values.items():
            setattr(row, name, value)


def test_within_a_project_first_come_first_served(database: Database, tenant: Tenant) -> None:
    job_ids = queued(database, tenant, 3)
    assert [claimed(database) for _ in range(4)] == [*job_ids, None]


def test_one_job_does_not_wait_for_a_hundred(database: Database, tenant: Tenant) -> None:
    """Also where one worker does everything, and they came first."""
    other = make_tenant(database)
    many = queued(database, tenant, 20)
    assert claimed(database) == many[0]
    (one,) = queued(database, other, 1, at=NOW + 999)
    assert claimed(database) == one, "it runs fewer"


def test_fewest_running_first(database: Database, tenant: Tenant) -> None:
    others = [make_tenant(database) for _ in range(2)]
    for each in (tenant, *others):
        queued(database, each, 6)
    owners = Counter(
        get_job(database, job_id).project_id for job_id in (claimed(database) for _ in range(9)) if job_id
    )
    assert set(owners.values()) == {3}


def test_a_worker_shares_its_time_and_not_its_jobs(database: Database, tenant: Tenant) -> None:
    """One worker; one project's jobs take ten times as long as the other's."""
    other = make_tenant(database)
    queued(database, tenant, 10), queued(database, other, 100)
    now, seconds = NOW, Counter[str]()
    for _ in range(44):
        held = claim(database, now=now)
        assert held is not None
        project_id = get_job(database, held.job_id).project_id
        took = 10.0 if project_id == tenant.project_id else 1.0
        now += took
        seconds[project_id] += took
        end(database, held, now=now)
    assert abs(seconds[tenant.project_id] - seconds[other.project_id]) <= 10


def test_what_ran_long_ago_counts_less(database: Database, tenant: Tenant) -> None:
    other = make_tenant(database)
    queued(database, tenant, 2), queued(database, other, 2, at=NOW + 100)
    held = claim(database)
    assert held is not None
    end(database, held, now=NOW + 50)
    day = 86400.0
    held = claim(database, now=NOW + day)
    assert held is not None
    assert get_job(database, held.job_id).project_id == other.project_id
    end(database, held, now=NOW + day + 10)
    # 50 seconds of yesterday weigh less than 10 of now.
    held = claim(database, now=NOW + day + 10)
    assert held is not None
    assert get_job(database, held.job_id).project_id == tenant.project_id


def test_recent_time_halves_with_every_half_life() -> None:
    recent = lanes.charged(0.0, 100.0, now=NOW)
    assert lanes.recent_seconds(recent, now=NOW) == pytest.approx(100.0)
    later = NOW + lanes.HALF_LIFE_SECONDS
    assert lanes.recent_seconds(recent, now=later) == pytest.approx(50.0)
    recent = lanes.charged(recent, 10.0, now=later)
    assert lanes.recent_seconds(recent, now=later) == pytest.approx(60.0)
    assert lanes.charged(recent, 0.0, now=later) == recent
    assert lanes.recent_seconds(0.0, now=later) == 0.0
    # After years of silence nothing overflows, and nothing is left.
    assert lanes.recent_seconds(recent, now=NOW + 1e9) == 0.0
    assert lanes.recent_seconds(lanes.charged(recent, 1.0, now=NOW + 1e9), now=NOW + 1e9) == pytest.approx(
        1.0
    )


def test_priority_outranks_everything_else(database: Database, tenant: Tenant) -> None:
    urgent, low = make_tenant(database), make_tenant(database)
    set_queue(database, urgent, rank=-5)
    set_queue(database, low, rank=3)
    normal_ids = queued(database, tenant, 1)
    low_ids = queued(database, low, 1, at=NOW - 100)
    urgent_ids = queued(database, urgent, 3, at=NOW + 100)
    assert [claimed(database) for _ in range(6)] == [*urgent_ids, *normal_ids, *low_ids, None]


def test_a_project_at_its_limit_is_passed_over_and_rung_for(database: Database, tenant: Tenant) -> None:
    other = make_tenant(database)
    with database.transaction() as session:
        session.add(ProjectQuota(project_id=tenant.project_id, concurrent_jobs=2))
    mine, theirs = queued(database, tenant, 4), queued(database, other, 5, at=NOW + 10)
    taken = [claimed(database, limit=4) for _ in range(7)]
    assert set(taken) - {None} == {*mine[:2], *theirs[:4]}
    assert taken[-1] is None
    first = Claim(mine[0], "w", 1, Stage.PREPARE, 1)
    assert heard(database) == []
    end(database, first, now=NOW + 1)
    assert heard(database) == [mine[2]]
    assert claimed(database, limit=4) == mine[2]
    assert claimed(database, limit=4) is None


@pytest.mark.parametrize("way", ["cancel", "pause", "hand back", "reap"])
def test_every_way_out_of_a_full_project_rings(database: Database, tenant: Tenant, way: str) -> None:
    first, second = queued(database, tenant, 2)
    running = claim(database, limit=1)
    assert running is not None
    assert claim(database, limit=1) is None
    with database.transaction() as session:
        if way == "cancel":
            cancel_job(session, project_id=tenant.project_id, job_id=first, now=NOW)
        elif way == "pause":
            pause_job(session, project_id=tenant.project_id, job_id=first, now=NOW)
    assert heard(database) == []  # it still runs
    with database.transaction() as session:
        if way in ("pause", "hand back"):
            lease.hand_back(session, running, reason="x", now=NOW + 50)
        else:
            (job,) = lease.expired(session, now=NOW + 99)
            lease.reap(session, job, max_attempts=9, now=NOW + 99)
    assert second in heard(database)


def test_only_what_fits_the_worker(database: Database, tenant: Tenant) -> None:
    other = make_tenant(database)
    (large,) = queued(database, tenant, 1, needed_memory_bytes=40)
    (small,) = queued(database, tenant, 1, at=NOW + 5, needed_memory_bytes=20)
    (unknown,) = queued(database, other, 1, at=NOW + 9)
    little = Kind("default", 24)
    taken = [claimed(database, kind=little) for _ in range(3)]
    assert set(taken) == {small, unknown, None}, "a job that is too large holds up nobody"
    assert claimed(database, kind=Kind("default", 80)) == large


def test_a_worker_that_declares_nothing_takes_everything(database: Database, tenant: Tenant) -> None:
    job_ids = queued(database, tenant, 1, needed_memory_bytes=2**50)
    assert claimed(database, kind=Kind()) == job_ids[0]


def test_a_project_bound_to_a_class(database: Database, tenant: Tenant) -> None:
    set_queue(database, tenant, worker_class="h100")
    (job_id,) = queued(database, tenant, 1)
    assert claimed(database) is None
    assert claimed(database, kind=Kind("h100", 0)) == job_id


def test_no_job_without_an_attempt_left_and_none_that_is_cancelled(
    database: Database, tenant: Tenant
) -> None:
    queued(database, tenant, 1, attempt_count=3)
    queued(database, tenant, 1, at=NOW + 1, cancel_requested_at=NOW)
    (last,) = queued(database, tenant, 1, at=NOW + 2)
    assert claimed(database, max_attempts=3) == last
    assert claimed(database, max_attempts=3) is None


def test_many_workers_claim_each_job_once(database: Database, tenant: Tenant) -> None:
    """Eight workers, three projects, one of them limited to two: the limit holds at every moment."""
    others = [make_tenant(database) for _ in range(2)]
    with database.transaction() as session:
        session.add(ProjectQuota(project_id=others[0].project_id, concurrent_jobs=2))
    all_ids = [job_id for each in (tenant, *others) for job_id in queued(database, each, 10)]
    lock = threading.Lock()
    won: list[str] = []
    too_many: list[int] = []

    def work() -> None:
        while len(won) < len(all_ids):
            held = claim(database, now=time.time())
            if held is None:
                time.sleep(0.005)
                continue
            with lock:
                won.append(held.job_id)
            with database.snapshot() as session:
                query = select(func.count()).where(
                    Job.project_id == others[0].project_id, Job.status == "running"
                )
                running = session.scalar(query) or 0
            if running > 2:
                too_many.append(running)
            end(database, held, now=time.time())

    threads = [threading.Thread(target=work, daemon=True) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "jobs were left in the queue"
    assert sorted(won) == sorted(all_ids)
    assert too_many == []


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_claim_does_not_wait_for_another(database: Database, tenant: Tenant) -> None:
    """PostgreSQL: while a project's row is locked, the next project's job is taken; with no other project the
    claim waits for the first to commit, and takes that project's next job."""
    other = make_tenant(database)
    mine, theirs = queued(database, tenant, 3), queued(database, other, 1, at=NOW + 50)
    options = {"owner": "w", "ttl_seconds": 60.0, "max_attempts": 9, "now": NOW}
    waiting: list[str | None] = []
    with database.transaction() as session:
        first = lease.claim_next(session, **options)  # type: ignore[arg-type]
        assert first is not None
        assert first.job_id == mine[0]
        assert claimed(database) == theirs[0]
        thread = threading.Thread(target=lambda: waiting.append(claimed(database)))
        thread.start()
        thread.join(0.3)
        assert thread.is_alive()
    thread.join(10)
    assert waiting == [mine[1]]


def test_the_row_counts_what_there_is(database: Database, tenant: Tenant) -> None:
    first, second, third = queued(database, tenant, 3)

    def row() -> tuple[int, int, float | None]:
        with database.snapshot() as session:
            found = session.get_one(ProjectQueue, tenant.project_id)
            return found.num_running, found.num_waiting, found.head_queued_at

    assert row() == (0, 3, NOW)
    held = claim(database)
    assert held is not None
    assert row() == (1, 2, NOW + 1)
    with database.transaction() as session:
        pause_job(session, project_id=tenant.project_id, job_id=second, now=NOW)
        cancel_job(session, project_id=tenant.project_id, job_id=third, now=NOW)
    assert row() == (1, 0, None)
    end(database, held, now=NOW + 3)
    assert row() == (0, 0, None)
    assert get_job(database, first).status == "failed"
