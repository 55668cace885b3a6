"""`move` on both databases, for every pair of states: it does what the table says, or nothing."""

from __future__ import annotations

from itertools import product

import pytest
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from service.db import Database
from service.jobs.states import TERMINAL, TRANSITIONS, Stage, State, Status
from service.jobs.transitions import IllegalTransitionError, LeaseLostError, fail, move
from service.models import Job, JobEvent
from tests.builders import Tenant, get_job, make_job

STATES: list[State] = list(product(Status, Stage))
REACHABLE_TARGETS = {target for targets in TRANSITIONS.values() for target in targets}


def events(session: Session, job_id: str) -> list[JobEvent]:
    query = select(JobEvent).where(JobEvent.job_id == job_id).order_by(JobEvent.sequence)
    return list(session.scalars(query))


def test_every_pair_of_states(database: Database, tenant: Tenant) -> None:
    """900 pairs in one transaction: the job is put into the source state, then moved."""
    with database.transaction() as session:
        job_id = make_job(session, tenant.project_id).id
        num_events = 0
        for source, target in product(STATES, STATES):
            values = {
                "status": source[0].value,
                "stage": source[1].value,
                "lease_owner": "worker",
                "lease_expires_at": 10.0,
                "finished_at": None,
            }
            session.execute(update(Job).where(Job.id == job_id).values(**values))
            if target not in REACHABLE_TARGETS:
                with pytest.raises(AssertionError, match="no edge"):
                    move(session, job_id, target, message="moved", now=7.0)
                continue
            if target not in TRANSITIONS.get(source, ()):
                with pytest.raises(IllegalTransitionError, match=target[0].value):
                    move(session, job_id, target, message="moved", now=7.0)
                expected = values
            else:
                move(session, job_id, target, message="moved", now=7.0)
                num_events += 1
                running = target[0] is Status.RUNNING
                expected = {
                    "status": target[0].value,
                    "stage": target[1].value,
                    "lease_owner": "worker" if running else None,
                    "lease_expires_at": 10.0 if running else None,
                    "finished_at": 7.0 if target[0] in TERMINAL else None,
                }
            row = session.execute(
                select(Job.status, Job.stage, Job.lease_owner, Job.lease_expires_at, Job.finished_at).where(
                    Job.id == job_id
                )
            ).one()
            assert row._asdict() == expected, f"{source} -> {target}"
        assert len(events(session, job_id)) == num_events == sum(map(len, TRANSITIONS.values()))


def test_a_stale_fencing_number_moves_nothing(database: Database, tenant: Tenant) -> None:
    with database.transaction() as session:
        job_id = make_job(session, tenant.project_id, status="running", fencing_number=2).id
        with pytest.raises(LeaseLostError, match="number 1 is no longer current"):
            move(session, job_id, (Status.RUNNING, Stage.TRAIN), message="x", now=1.0, fencing_number=1)
        assert events(session, job_id) == []
        move(session, job_id, (Status.RUNNING, Stage.TRAIN), message="x", now=1.0, fencing_number=2)
    assert get_job(database, job_id).stage == "train"


def test_only_from_narrows_the_table(database: Database, tenant: Tenant) -> None:
    with database.transaction() as session:
        job_id = make_job(session, tenant.project_id, status="running").id
        target = (Status.CANCELLED, Stage.PREPARE)
        with pytest.raises(IllegalTransitionError):
            move(session, job_id, target, message="x", now=1.0, only_from=Status.QUEUED)


def test_failing_says_why_on_the_job_and_in_an_event(database: Database, tenant: Tenant) -> None:
    with database.transaction() as session:
        job_id = make_job(session, tenant.project_id, status="running", stage="train").id
        fail(session, job_id, Stage.TRAIN, code="non_finite_loss", message="loss is NaN", param=None, now=9.0)
        (event,) = events(session, job_id)
        assert (event.level, event.message) == ("error", "The job failed: loss is NaN")
        assert event.data == {"code": "non_finite_loss"}
    job = get_job(database, job_id)
    assert (job.status, job.error_code, job.error_message, job.finished_at) == (
        "failed",
        "non_finite_loss",
        "loss is NaN",
        9.0,
    )
