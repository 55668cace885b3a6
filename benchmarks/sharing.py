"""The part `sharing` of `scheduler.py`: simulated workers over a real database."""

from __future__ import annotations

import heapq
import random
import statistics
import time
from collections import Counter
from typing import Any

from queue_database import NOW, QUOTA
from sqlalchemy import func, select

from service.db import Database
from service.jobs.creation import add_job
from service.jobs.lease import Claim
from service.jobs.next_job import take_next
from service.jobs.states import Stage
from service.jobs.transitions import fail
from service.models import Job

MEAN_SECONDS = 600.0


class Fleet:
    """Workers in simulated time, each with one job or none; the database is real."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.rng = random.Random(0)  # noqa: S311
        self.busy: list[tuple[float, int, Claim, str, float]] = []
        """Ends at, a number against ties, what, of which project, since."""
        self.used: Counter[str] = Counter()
        self.latencies: list[float] = []
        self.arrived: dict[str, float] = {}
        self.waits: list[float] = []
        self._number = 0

    def give(self, at: float) -> None:
        """An idle worker asks."""
        started = time.perf_counter()
        held = take_next(
            self.database, owner="w", ttl_seconds=1e9, max_attempts=3, now=at, default_quota=QUOTA
        )
        self.latencies.append(time.perf_counter() - started)
        if held is None:
            return
        with self.database.snapshot() as session:
            project_id = session.scalars(select(Job.project_id).where(Job.id == held.job_id)).one()
        self._number += 1
        if held.job_id in self.arrived:
            self.waits.append(at - self.arrived[held.job_id])
        ends_at = at + self.rng.expovariate(1 / MEAN_SECONDS)
        heapq.heappush(self.busy, (ends_at, self._number, held, project_id, at))

    def end_one(self) -> float:
        """The job that ends first; when."""
        at, _, held, project_id, since = heapq.heappop(self.busy)
        self.used[project_id] += at - since
        with self.database.transaction() as session:
            fail(
                session,
                held.job_id,
                Stage.PREPARE,
                code="x",
                message="x",
                param=None,
                now=at,
                fencing_number=held.fencing_number,
            )
        return at

    def arrive(self, project_id: str, at: float) -> None:
        """A job of a project that had none."""
        with self.database.transaction() as session:
            like = session.scalars(select(Job).limit(1)).one()
            same = ("organization_id", "base_id", "base_sha256", "training_file_id", "seed", "method")
            same = (*same, "hyperparameters", "spec", "safety_profile")
            job = Job(
                id=f"ftjob-{project_id}",
                project_id=project_id,
                created_at=at,
                status="validating_files",
                stage="prepare",
                stage_outputs={},
                **{name: getattr(like, name) for name in same},
            )
            self.arrived[add_job(session, job, now=at)] = at


def sharing(
    database: Database, large: list[str], single: list[str], *, workers: int, seconds: float
) -> dict[str, Any]:
    """`single` are projects whose one job enters the queue while this goes on."""
    fleet, began = Fleet(database), NOW + 1_000_000.0
    now, num_ended, comes = began, 0, iter(single)
    give_up_at = time.monotonic() + seconds
    for _ in range(workers):
        fleet.give(now)
    while fleet.busy and time.monotonic() < give_up_at:
        now = fleet.end_one()
        num_ended += 1
        fleet.give(now)
        # After the worker was served: the job waits for another one to become free.
        if num_ended % 20 == 0 and (project := next(comes, None)) is not None:
            fleet.arrive(project, now)
    for _, _, _, project_id, since in fleet.busy:
        fleet.used[project_id] += max(0.0, now - since)
    shares = [fleet.used[project] for project in large]
    with database.snapshot() as session:
        left = session.scalar(select(func.count()).where(Job.status == "queued")) or 0
    latencies = sorted(fleet.latencies)
    return {
        "workers": workers,
        "large_tenants": len(large),
        "queued_at_the_end": left,
        "simulated_seconds": round(now - began),
        "jobs_ended": num_ended,
        "jain_index_of_running_time": round(sum(shares) ** 2 / (len(shares) * sum(s * s for s in shares)), 4),
        "single_jobs": {
            "arrived": len(fleet.arrived),
            "started": len(fleet.waits),
            "wait_seconds_median": round(statistics.median(fleet.waits), 2),
            "wait_seconds_longest": round(max(fleet.waits), 2),
            "wait_seconds_by_order_of_arrival": round(left / (num_ended / (now - began))),
        },
        "claim_latency_ms": {
            "median": round(1000 * statistics.median(latencies), 1),
            "p99": round(1000 * latencies[int(0.99 * (len(latencies) - 1))], 1),
        },
    }
