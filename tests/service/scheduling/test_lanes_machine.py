"""Any sequence of what owners, workers and the reaper do: what a project's row says is what its jobs are, a
claim obeys the rule, and nothing that could run is left lying."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from service.db import Database
from service.jobs import lease
from service.jobs.lease import Claim
from service.jobs.next_job import take_next
from service.jobs.service import cancel_job, pause_job, resume_job
from service.jobs.states import Stage
from service.jobs.transitions import fail
from service.models import Job, JobAttempt, JobEvent, OutboxMessage, ProjectQueue
from service.quotas.limits import Quota
from service.scheduling.workers import Kind
from tests.builders import Tenant, make_file, make_job, make_tenant

LIMIT = 2
KINDS = (Kind(), Kind("default", 10), Kind("large", 30))
NEEDS = (None, 5, 20, 40)
DEEDS = ("create", "claim", "end", "hand back", "lose", "pause", "resume", "cancel", "stage")


class World:
    """Three projects; what is done is chosen by small numbers."""

    def __init__(self, database: Database, tenants: list[Tenant], files: dict[str, str]) -> None:
        self.database, self.files = database, files
        self.project_ids = [tenant.project_id for tenant in tenants]
        self.now = 1_700_000_000.0
        self.held: list[Claim] = []

    def clear(self) -> None:
        with self.database.transaction() as session:
            for table in (OutboxMessage, JobEvent, JobAttempt, Job, ProjectQueue):
                session.execute(delete(table))

    def do(self, deed: str, number: int) -> None:
        self.now += 1.0
        if deed == "claim":
            self.claim(KINDS[number % len(KINDS)], at_once=number % 2 == 0)
            return
        with self.database.transaction() as session:
            if deed == "create":
                project_id = self.project_ids[number % 3]
                need = NEEDS[number // 3 % len(NEEDS)]
                make_job(session, project_id, created_at=self.now, needed_memory_bytes=need,
                         training_file_id=self.files[project_id])  # fmt: skip
            elif deed in ("pause", "resume", "cancel"):
                self.ask(
                    session, {"pause": pause_job, "resume": resume_job, "cancel": cancel_job}[deed], number
                )
            elif self.held:
                self.work(session, deed, self.held[number % len(self.held)])

    def claim(self, kind: Kind, *, at_once: bool) -> None:
        with self.database.snapshot() as session:
            expected = self.expected(session, kind)
        options: dict[str, Any] = {"owner": "w", "ttl_seconds": 10.0, "max_attempts": 99, "now": self.now,
                                   "kind": kind, "default_quota": Quota(concurrent_jobs=LIMIT)}  # fmt: skip
        if at_once:
            held = take_next(self.database, **options)
        else:
            with self.database.transaction() as session:
                held = lease.claim_next(session, **options)
        assert (held and held.job_id) == expected
        if held is not None:
            self.held.append(held)

    def expected(self, session: Session, kind: Kind) -> str | None:
        """The rule, said again over all jobs."""
        jobs = list(session.scalars(select(Job)))
        choices = []
        for project_id in self.project_ids:
            running = sum(job.project_id == project_id and job.status == "running" for job in jobs)
            waiting = [job for job in jobs if job.project_id == project_id and job.status == "queued"]
            fitting = [
                job for job in waiting
                if not kind.memory_bytes or (job.needed_memory_bytes or 0) <= kind.memory_bytes
            ]  # fmt: skip
            if fitting and running < LIMIT:
                recent = session.get_one(ProjectQueue, project_id).recent
                first = min(job.queued_at or 0.0 for job in waiting)
                chosen = min(fitting, key=lambda job: (job.queued_at or 0.0, job.id))
                choices.append((running, recent, first, project_id, chosen.id))
        return min(choices)[-1] if choices else None

    def ask(self, session: Session, action: Callable[..., None], number: int) -> None:
        live = select(Job).where(Job.status.in_(("queued", "paused", "running"))).order_by(Job.created_at)
        jobs = list(session.scalars(live))
        if jobs:
            job = jobs[number % len(jobs)]
            action(session, project_id=job.project_id, job_id=job.id, now=self.now)

    def work(self, session: Session, deed: str, held: Claim) -> None:
        if deed == "stage":
            job = session.get_one(Job, held.job_id)
            if job.stage == Stage.PREPARE.value:
                lease.finish_stage(session, held, Stage.PREPARE, output={}, now=self.now)
            return
        self.held.remove(held)
        job = session.get_one(Job, held.job_id)
        if deed == "lose":
            lease.reap(session, job, max_attempts=99, now=self.now)
        elif deed == "hand back":
            lease.hand_back(session, held, reason="x", now=self.now, count_attempt=False)
        else:
            fail(session, held.job_id, Stage(job.stage), code="x", message="x", param=None, now=self.now,
                 fencing_number=held.fencing_number)  # fmt: skip

    def check(self) -> None:
        """Each row says what the jobs are; nobody runs more than allowed."""
        with self.database.snapshot() as session:
            for project_id in self.project_ids:
                mine = Job.project_id == project_id
                running = session.scalar(select(func.count()).where(mine, Job.status == "running"))
                waiting, first = session.execute(
                    select(func.count(), func.min(Job.queued_at)).where(mine, Job.status == "queued")
                ).one()
                row = session.get(ProjectQueue, project_id)
                said = (0, 0, None) if row is None else (row.num_running, row.num_waiting, row.head_queued_at)
                assert said == (running, waiting, first)
                assert (running or 0) <= LIMIT


@pytest.fixture
def world(database: Database, tenant: Tenant) -> World:
    tenants = [tenant, make_tenant(database), make_tenant(database)]
    with database.transaction() as session:
        files = {each.project_id: make_file(session, each.project_id).id for each in tenants}
    return World(database, tenants, files)


@given(deeds=st.lists(st.tuples(st.sampled_from(DEEDS), st.integers(0, 11)), min_size=5, max_size=40))
@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_any_sequence(world: World, deeds: list[tuple[Any, int]]) -> None:
    world.clear()
    world.held.clear()
    for deed, number in deeds:
        world.do(deed, number)
        world.check()
