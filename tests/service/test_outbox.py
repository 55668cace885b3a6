"""The outbox: with its job or not at all, oldest first, and nobody else's while a publisher sends."""

from __future__ import annotations

import pytest
from sqlalchemy import select

from service import outbox
from service.db import Database
from service.models import Job, OutboxMessage
from tests.builders import Tenant, get_job, make_job, make_tenant


def test_a_message_is_rolled_back_with_its_job(database: Database, tenant: Tenant) -> None:
    def fail() -> None:
        with database.transaction() as session:
            outbox.enqueue(session, make_job(session, tenant.project_id).id, now=1.0)
            raise KeyError("x")

    with pytest.raises(KeyError):
        fail()
    with database.snapshot() as session:
        assert session.scalars(select(OutboxMessage)).all() == []
        assert session.scalars(select(Job)).all() == []


def test_pending_are_the_unsent_oldest_first(database: Database, tenant: Tenant) -> None:
    with database.transaction() as session:
        jobs = [make_job(session, tenant.project_id).id for _ in range(4)]
        for job_id in jobs:
            outbox.enqueue(session, job_id, now=5.0)
    with database.transaction() as session:
        first = outbox.pending(session, limit=2)
        assert [message.job_id for message in first] == jobs[:2]
        for message in first:
            message.sent_at = 6.0
    with database.transaction() as session:
        assert [message.job_id for message in outbox.pending(session)] == jobs[2:]
    assert get_job(database, jobs[0]).rung_at == 5.0


def test_forgetting_keeps_the_unsent_and_the_recent(database: Database, tenant: Tenant) -> None:
    with database.transaction() as session:
        job_id = make_job(session, tenant.project_id).id
        for sent_at in (None, 10.0, 20.0):
            session.add(OutboxMessage(job_id=job_id, created_at=1.0, sent_at=sent_at))
    with database.transaction() as session:
        outbox.forget_sent(session, before=15.0)
    with database.snapshot() as session:
        left = session.scalars(select(OutboxMessage.sent_at).order_by(OutboxMessage.sequence)).all()
    assert left == [None, 20.0]


def test_two_publishers_share_the_work(postgresql_url: str) -> None:
    """SQLite has one writer at a time; PostgreSQL must skip what another publisher holds."""
    database = Database.from_url(postgresql_url)
    project_id = make_tenant(database).project_id
    with database.transaction() as session:
        for _ in range(2):
            outbox.enqueue(session, make_job(session, project_id).id, now=1.0)
    with database.transaction() as one, database.transaction() as other:
        (first,) = outbox.pending(one, limit=1)
        (second,) = outbox.pending(other, limit=1)
        assert first.sequence != second.sequence
        assert outbox.pending(other)[0].sequence == second.sequence
    database.close()
