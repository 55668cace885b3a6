"""The journal against a real database: what a fenced-off worker would write shows, whatever the code says."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import psycopg
import pytest
from sqlalchemy import update

from chaos import journal
from chaos.audit import a_lost_lease_writes_nothing, rows_follow_the_table
from chaos.end_state import EndState, read_database
from service.db import Database
from service.jobs import lease
from service.jobs.lease import Claim
from service.jobs.states import Stage
from service.models import Job
from tests.builders import make_queued_job, make_tenant


@contextmanager
def process(url: str, name: str) -> Iterator[Database]:
    """As one of the run's: it names itself towards the database."""
    database = Database.from_url(f"{url}&application_name={name}")
    yield database
    database.close()


@pytest.fixture
def journaled_url(postgresql_url: str) -> str:
    with psycopg.connect(postgresql_url, autocommit=True) as connection:
        journal.install(connection)
    return postgresql_url


def read(url: str) -> EndState:
    state = EndState()
    with psycopg.connect(url, autocommit=True) as connection:
        read_database(connection, state)
    return state


def test_who_lost_the_lease_is_seen(journaled_url: str) -> None:
    values: dict[str, Any] = {"ttl_seconds": 60.0, "max_attempts": 3}
    with ExitStack() as stack:
        api, first, second, reaper = (
            stack.enter_context(process(journaled_url, name))
            for name in ("api.1", "worker-0.1", "worker-1.1", "maintenance-0.1")
        )
        project_id = make_tenant(api).project_id
        with api.transaction() as session:
            job_id = make_queued_job(session, project_id).id

        def claim(database: Database) -> Claim:
            with database.transaction() as session:
                claimed = lease.claim(session, job_id, owner="w", now=1.0, **values)
            assert claimed is not None
            return claimed

        claim(first)
        with reaper.transaction() as session:
            job = session.get_one(Job, job_id)
            lease.reap(session, job, max_attempts=3, now=100.0)
        mine = claim(second)
        with second.transaction() as session:
            lease.finish_stage(session, mine, Stage.PREPARE, output={}, now=2.0)
        state = read(journaled_url)
        assert list(a_lost_lease_writes_nothing(state)) == []
        assert {entry.app for entry in state.journal} == {
            "api.1",
            "worker-0.1",
            "worker-1.1",
            "maintenance-0.1",
        }
        assert [entry.fencing for entry in state.journal if entry.is_claim] == [1, 2]

        with first.transaction() as session:  # no fencing number in its WHERE
            session.execute(update(Job).where(Job.id == job_id).values(progress={"step": 1}))
        with first.transaction() as session:
            session.execute(update(Job).where(Job.id == job_id).values(stage="publish"))
        state = read(journaled_url)
        assert (
            list(a_lost_lease_writes_nothing(state))
            == [f"worker-0.1 wrote jobs of {job_id} under 2, held by worker-1.1"] * 2
        )
        assert len(list(rows_follow_the_table(state))) == 2  # that, and a job that a test inserts as queued


def test_a_rung_bell_is_no_write(journaled_url: str) -> None:
    with process(journaled_url, "worker-0.1") as worker:
        project_id = make_tenant(worker).project_id
        with worker.transaction() as session:
            job_id = make_queued_job(session, project_id).id
        before = len(read(journaled_url).journal)
        with worker.transaction() as session:
            session.execute(update(Job).where(Job.id == job_id).values(rung_at=5.0))
    assert len(read(journaled_url).journal) == before
