"""The claim that is one statement, on PostgreSQL: it writes what the parts write, takes nothing by what is
outdated, and waits for nobody while it holds what others want."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from sqlalchemy import Text, cast, func, inspect, select, text, update
from sqlalchemy.exc import OperationalError

from service.db import Database
from service.jobs import claiming, lease
from service.jobs.attempts import KEPT_ATTEMPTS
from service.jobs.next_job import take_next
from service.jobs.service import cancel_job
from service.jobs.states import Stage
from service.jobs.transitions import fail
from service.models import Job, JobAttempt, JobEvent, ProjectQueue
from service.quotas.limits import Quota
from service.scheduling import policy
from service.scheduling.workers import Kind
from tests.builders import Tenant, get_job, make_queued_job, make_tenant

NOW = 1_700_000_000.0
OPTIONS: dict[str, Any] = {"owner": "w", "ttl_seconds": 60.0, "max_attempts": 99, "now": NOW + 100}


@pytest.fixture
def database_url(postgresql_url: str) -> str:
    return postgresql_url


def queued(
    database: Database, tenant: Tenant, number: int = 1, first_at: float = NOW, **columns: Any
) -> list[str]:
    with database.transaction() as session:
        return [
            make_queued_job(session, tenant.project_id, created_at=first_at + i, **columns).id
            for i in range(number)
        ]


def written(database: Database, tenant: Tenant, job_id: str) -> dict[str, Any]:
    """All that a claim writes, without what names the job."""
    job = get_job(database, job_id)
    names = {attribute.key for attribute in inspect(Job).column_attrs}
    unique = {"id", "project_id", "organization_id", "training_file_id", "model_id"}
    with database.snapshot() as session:
        events = session.scalars(select(JobEvent).where(JobEvent.job_id == job_id)).all()
        attempts = session.scalars(select(JobAttempt).where(JobAttempt.job_id == job_id)).all()
        queue = session.get_one(ProjectQueue, tenant.project_id)
        return {
            "job": {name: getattr(job, name) for name in names - unique},
            "events": [(e.created_at, e.level, e.type, e.message, e.data) for e in events],
            "attempts": sorted((a.fencing_number, a.worker, a.first_stage, a.started_at) for a in attempts),
            "queue": (queue.num_running, queue.num_waiting, queue.head_queued_at, queue.running_limit),
        }


@pytest.mark.parametrize(
    "columns",
    [
        {},
        {
            "stage": "train",
            "attempt_count": 2,
            "fencing_number": 60,
            "started_at": NOW,
            "progress": {"a": 1},
        },
    ],
    ids=["new", "resumed"],
)
def test_it_writes_what_the_parts_write(database: Database, tenant: Tenant, columns: dict[str, Any]) -> None:
    found = []
    for at_once in (True, False):
        whose = make_tenant(database)
        first, _ = queued(database, whose, 2, **columns)
        with database.transaction() as session:
            for number in (5, 61 - KEPT_ATTEMPTS, 62 - KEPT_ATTEMPTS):
                session.add(
                    JobAttempt(
                        job_id=first, fencing_number=number, worker="x", first_stage="train", started_at=1.0
                    )
                )
        options = OPTIONS | {"default_quota": Quota(concurrent_jobs=3)}
        if at_once:
            held = take_next(database, **options)
        else:
            with database.transaction() as session:
                held = lease.claim_next(session, **options)
        assert held is not None
        assert held.job_id == first
        found.append((held.stage, held.attempt, held.fencing_number, written(database, whose, first)))
        with database.transaction() as session:
            session.execute(update(Job).where(Job.project_id == whose.project_id).values(status="paused"))
            session.query(ProjectQueue).delete()
    assert found[0] == found[1]
    kept = [number for number, *_ in found[0][3]["attempts"]]
    assert kept == ([12, 61] if columns else [1, 5, 11, 12])


GATE = 20_260_000
"""An advisory lock that nobody else takes."""


class Slow:
    """The statement, held up between what it sees and what it locks, until `result` is asked for."""

    def __init__(self, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
        plain = policy.open_projects
        self._gate = database.engine.connect()
        self._gate.execute(select(cast(func.pg_advisory_xact_lock(GATE), Text)))
        with monkeypatch.context() as patch:
            patch.setattr(
                policy,
                "open_projects",
                lambda *, sized: plain(sized=sized).where(
                    cast(func.pg_advisory_xact_lock(GATE), Text).is_not(None)
                ),
            )
            statement = claiming.claim_at_once.__wrapped__(sized=False)
        values = policy.turn_parameters(Kind(), default=Quota(), max_attempts=9)
        values |= lease.taking(owner="w", ttl_seconds=9.0, now=NOW) | {"event_id": "ftevent-x"}
        self.row: Any = None

        def run() -> None:
            with database.statements() as session:
                self.row = session.connection().execute(statement, values).one()

        self._thread = threading.Thread(target=run)
        self._thread.start()
        with database.statements() as session:
            while not session.scalar(_WAITS):
                time.sleep(0.01)

    def result(self) -> Any:
        self._gate.close()
        self._thread.join(60)
        return self.row


_WAITS = text(f"SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = {GATE} AND NOT granted")


@pytest.mark.parametrize("meanwhile", ["a job comes", "the job goes", "nothing"])
def test_what_changed_meanwhile_is_noticed(
    database: Database, tenant: Tenant, monkeypatch: pytest.MonkeyPatch, meanwhile: str
) -> None:
    (job_id,) = queued(database, tenant)
    slow = Slow(database, monkeypatch)
    if meanwhile == "a job comes":
        queued(database, tenant, first_at=NOW + 5)
    elif meanwhile == "the job goes":
        with database.transaction() as session:
            cancel_job(session, project_id=tenant.project_id, job_id=job_id, now=NOW)
            make_queued_job(session, tenant.project_id, created_at=NOW + 5)
    row = slow.result()
    if meanwhile == "nothing":
        assert (row.id, row.outdated) == (job_id, False)
    else:
        assert (row.id, row.outdated) == (None, True)
        assert get_job(database, job_id).attempt_count == 0
        held = take_next(database, **OPTIONS)
        assert held is not None
        assert (held.job_id == job_id) == (meanwhile == "a job comes")


def test_who_waits_holds_no_other_project(database: Database, tenant: Tenant) -> None:
    """Two claims that each hold a project's row and wait for the other's would end as a deadlock."""
    other = make_tenant(database)
    (mine,) = queued(database, tenant)
    (theirs,) = queued(database, other)
    claims: list[Any] = []
    thread = threading.Thread(target=lambda: claims.append(take_next(database, **OPTIONS)))
    with database.transaction() as session:
        # The first project's only job is just being changed, the second project's row is held.
        session.execute(select(Job).where(Job.id == mine).with_for_update())
        session.execute(
            select(ProjectQueue).where(ProjectQueue.project_id == other.project_id).with_for_update()
        )
        thread.start()
        thread.join(0.5)
        assert thread.is_alive(), claims
        with database.transaction() as third:
            query = select(ProjectQueue).where(ProjectQueue.project_id == tenant.project_id)
            try:
                third.execute(query.with_for_update(nowait=True))
            except OperationalError:
                pytest.fail("it holds the row of a project of which it got nothing")
    thread.join(10)
    assert claims[0].job_id == theirs


def test_rows_agree_with_jobs_after_a_crowd(database: Database, tenant: Tenant) -> None:
    """Claims, ends and arrivals at the same time, over few projects."""
    tenants = [tenant, make_tenant(database), make_tenant(database)]
    for each in tenants:
        queued(database, each, 12)
    stop_at = time.monotonic() + 2.0
    errors: list[BaseException] = []
    taken: list[str] = []

    def work(number: int) -> None:
        held = []
        try:
            while time.monotonic() < stop_at:
                claim = take_next(database, **OPTIONS | {"default_quota": Quota(concurrent_jobs=3)})
                if claim is not None:
                    taken.append(f"{claim.job_id} {claim.fencing_number}")
                    held.append(claim)
                if claim is None or len(held) > number % 2:
                    for each in held:
                        end(each)
                    held.clear()
                    queued(database, tenants[number % 3])
        except BaseException as error:
            errors.append(error)

    def end(claim: lease.Claim) -> None:
        with database.transaction() as session:
            if claim.attempt == 1:
                lease.hand_back(session, claim, reason="x", now=NOW + 200)
            else:
                fail(
                    session,
                    claim.job_id,
                    Stage.PREPARE,
                    code="internal_error",
                    message="x",
                    param=None,
                    now=NOW + 200,
                    fencing_number=claim.fencing_number,
                )

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == []
    assert len(taken) == len(set(taken)) > 0
    with database.snapshot() as session:
        for each in tenants:
            mine = Job.project_id == each.project_id
            running = session.scalar(select(func.count()).where(mine, Job.status == "running"))
            query = select(func.count(), func.min(Job.queued_at)).where(mine, Job.status == "queued")
            waiting, first = session.execute(query).one()
            row = session.get_one(ProjectQueue, each.project_id)
            assert (row.num_running, row.num_waiting, row.head_queued_at) == (running, waiting, first)
            assert (running or 0) <= 3
