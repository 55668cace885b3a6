"""The part `claims` of `scheduler.py`: processes with threads that take jobs until none is left."""

from __future__ import annotations

import multiprocessing
import resource
import statistics
import threading
import time
from collections import Counter
from typing import Any

from queue_database import NOW, QUOTA
from sqlalchemy import func, select

from service.db import Database
from service.jobs.next_job import take_next
from service.models import File, Job


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
            held = take_next(
                database, owner="w", ttl_seconds=60.0, max_attempts=3, now=NOW, default_quota=QUOTA
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
