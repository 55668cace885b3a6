"""A database with 10,000 jobs of all states in 40 projects, and the workers that go on writing to it."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from job_requests import batches
from parents import BASE_ID, add_base, add_file
from sqlalchemy import insert, text, update

from service import auth
from service.db import Database
from service.fleet.presence import Sighting, see
from service.fleet.states import WorkerState
from service.jobs.metrics import add_steps
from service.models import Job, SafetyFigures
from service.operators import create_operator_key

NUM_JOBS = 10_000
NUM_PROJECTS = 40
NUM_WORKERS = 16
ENDED = (("succeeded", "publish"),) * 8 + (
    ("failed", "evaluate"),
    ("failed", "train"),
    ("cancelled", "train"),
)
WAITING = (("queued", "prepare"), ("paused", "train"), ("validating_files", "prepare"))


@dataclass(frozen=True)
class Filled:
    operator_key: str
    project_key: str
    running: list[str]
    """Ids of jobs of workers."""


def fill(database: Database) -> Filled:
    now, chance = time.time(), random.Random(1)  # noqa: S311
    with database.transaction() as session:
        add_base(session, now=now)
        owners = []
        for number in range(NUM_PROJECTS):
            organization = auth.create_organization(session, name=f"Organization {number}", now=now)
            project = auth.create_project(
                session, organization_id=organization.id, name=f"Project {number}", now=now
            )
            _, key = auth.create_api_key(session, project_id=project.id, name="benchmark", now=now)
            add_file(session, f"file-{number}", project.id, now=now)
            owners.append((project.id, organization.id, f"file-{number}", key))
        rows = [_job(number, owners[number % NUM_PROJECTS], chance, now) for number in range(NUM_JOBS)]
        for batch in batches(iter(rows), 2_000):
            session.execute(insert(Job), batch)
        measured = (_figures(row, chance) for row in rows if row["status"] in ("succeeded", "failed"))
        for batch in batches(measured, 2_000):
            session.execute(insert(SafetyFigures), batch)
        _, operator_key = create_operator_key(session, name="benchmark", now=now)
    running = [row["id"] for row in rows[:NUM_WORKERS]]
    work(database, running, step=0)
    with database.engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        connection.execute(text("ANALYZE"))
    return Filled(operator_key, owners[0][3], running)


def _job(number: int, owner: tuple[str, str, str, str], chance: random.Random, now: float) -> dict[str, Any]:
    """The first ones run, every twentieth waits, the others have ended. As wide as a real row: a report and
    a tail of a log are kilobytes."""
    if number < NUM_WORKERS:
        status, stage = "running", "train"
    else:
        status, stage = chance.choice(WAITING if number % 20 == 0 else ENDED)
    created_at = now - 86_400 * 60 * number / NUM_JOBS
    ended = status in ("succeeded", "failed", "cancelled")
    project_id, organization_id, file_id, _ = owner
    return {
        "id": f"ftjob-{number:024d}",
        "project_id": project_id,
        "organization_id": organization_id,
        "base_id": BASE_ID,
        "base_sha256": "b" * 64,
        "training_file_id": file_id,
        "suffix": f"run-{number}",
        "seed": number,
        "method": {"type": "supervised"},
        "hyperparameters": {"n_epochs": 3},
        "spec": {"lora": {"r": 16}, "train": {"n_epochs": 3}},
        "safety_profile": {},
        "created_at": created_at,
        "queued_at": created_at,
        "started_at": None if status in ("queued", "validating_files") else created_at,
        "finished_at": created_at + 900 if ended else None,
        "stage_began_at": created_at if status == "running" else None,
        "status": status,
        "stage": stage,
        "error_code": "internal_error" if status == "failed" else None,
        "lease_owner": f"worker-{number}" if status == "running" else None,
        "lease_expires_at": now + 3600 if status == "running" else None,
        "fencing_number": 1,
        "attempt_count": 1,
        "stage_outputs": {},
        "safety_report": {"padding": "x" * 8_000} if ended else None,
        "log_tail": "x" * 2_000 if ended else None,
    }


def _figures(row: dict[str, Any], chance: random.Random) -> dict[str, Any]:
    before, utility = chance.uniform(20, 90), chance.uniform(50, 95)
    return {
        "job_id": row["id"],
        "measured_at": row["finished_at"],
        "base_id": BASE_ID,
        "result": "passed" if row["status"] == "succeeded" else "refused",
        "harmful_before": before,
        "harmful_after": before * chance.uniform(0, 0.2),
        "utility_before": utility,
        "utility_after": utility - chance.uniform(0, 8),
        "control_harmful": 12.0,
        "control_undecided": 0,
        "control_prompts": 200,
        "control_key": "c" * 64,
        "judge": "refusal",
        "profile_version": "1",
    }


def work(database: Database, running: list[str], *, step: int) -> None:
    """What workers write at a heartbeat, after five steps."""
    now = time.time()
    with database.transaction() as session:
        for number, job_id in enumerate(running):
            add_steps(
                session,
                job_id,
                first_step=5 * step + 1,
                train_loss=[1.0] * 5,
                learning_rate=[1e-4] * 5,
                tokens_per_second=[10_000.0] * 5,
            )
            speed = 10_000.0 + step
            progress = {"step": 5 * step, "total_steps": 1000, "loss": 1.0, "tokens_per_second": speed}
            session.execute(
                update(Job)
                .where(Job.id == job_id)
                .values(progress=progress, heartbeat_at=now, progress_at=now)
            )
            sighting = Sighting(
                id=f"worker-{number}",
                host=f"node-{number}",
                pid=100 + number,
                started_at=now - 3600,
                heartbeat_at=now,
                state=WorkerState.BUSY,
                job_id=job_id,
                device_kind="cuda",
                device_name="GPU",
                memory_used_bytes=60 * 2**30 + step,
                memory_total_bytes=80 * 2**30,
            )
            see(session, sighting)


@contextmanager
def working(database: Database, running: list[str]) -> Iterator[None]:
    """A heartbeat of every worker each five seconds, as by default, and a step shown at each."""
    over = threading.Event()

    def loop() -> None:
        step = 1
        while not over.wait(5.0):
            work(database, running, step=step)
            step += 1

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
