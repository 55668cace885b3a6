"""The operator's pages with many jobs, and what pages cost that are left open.

    python benchmarks/dashboard.py --out benchmarks/results

On SQLite and on PostgreSQL, with 10,000 jobs of all states in 40 projects, 16 workers and a safety report's
figures for most: how long `GET /dashboard` and the other pages of operators take to answer, one request after
the other, in turn with a bare page (`bare.py`: FastAPI and a Jinja template of about the same size, signed in
to nothing, reading nothing). Then 200 pages that are open at once, each with a session and a connection of
its own, and ask whether there is something new as often as the server tells them (service/pace.py), while
workers write heartbeats and steps; a job's page asks for its curve too when something is new: processor time
of the server's process over 30 seconds, as a share of one core, once the pages have settled.
"""

from __future__ import annotations

import argparse
import http.client
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from filled import fill
from job_requests import servers
from machine import folder_for, machine
from open_pages import left_open, sign_in
from servers import bare_api, our_api

from service import schema
from service.db import Database

PARTS = ("pages", "open")
PAGES = ("/dashboard", "/dashboard/jobs", "/dashboard/safety", "/dashboard/tenants", "/dashboard/audit")


class Visitor:
    """Asks for whole pages, one after the other on one connection."""

    def __init__(self, port: int, cookie: str | None) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port)
        self._headers = {} if cookie is None else {"cookie": cookie}

    def milliseconds(self, path: str) -> float:
        started = time.perf_counter()
        self._connection.request("GET", path, headers=self._headers)
        answer = self._connection.getresponse()
        answer.read()
        took = 1000 * (time.perf_counter() - started)
        if answer.status != 200:
            raise SystemExit(f"{path}: {answer.status}")
        return took


def pages(port: int, bare_port: int, cookie: str, *, requests: int) -> dict[str, Any]:
    ours, bare = Visitor(port, cookie), Visitor(bare_port, None)
    found: dict[str, Any] = {}
    for path in PAGES:
        for _ in range(5):
            ours.milliseconds(path), bare.milliseconds("/page")
        took = [(ours.milliseconds(path), bare.milliseconds("/page")) for _ in range(requests)]
        mine, theirs = sorted(pair[0] for pair in took), sorted(pair[1] for pair in took)
        found[path] = {
            "median_milliseconds": round(statistics.median(mine), 1),
            "p95_milliseconds": round(mine[int(0.95 * len(mine))], 1),
            "bare_median_milliseconds": round(statistics.median(theirs), 1),
            "times_a_bare_page": round(statistics.median(a / b for a, b in took), 1),
        }
    return found


def measure(
    url: str, broker_url: str, *, parts: list[str], requests: int, seconds: float, path: str
) -> dict[str, Any]:
    schema.upgrade(url)
    database = Database.from_url(url)
    filled = fill(database)
    try:
        with tempfile.TemporaryDirectory(prefix="autoclave-storage-") as folder:
            environment = {"DATABASE_URL": url, "STORAGE_URL": f"file://{folder}", "FOLDER": folder}
            environment |= {"BROKER_URL": broker_url, "RATE_READS_PER_MINUTE": "100000000"}
            with our_api(environment) as (port, pid), bare_api(environment) as (bare_port, _):
                cookie = sign_in(port, filled.operator_key)
                found = {}
                if "pages" in parts:
                    found["10,000 jobs"] = pages(port, bare_port, cookie, requests=requests)
                if "open" in parts:
                    opened = left_open(database, filled, port, pid, path=path, seconds=seconds)
                    found[f"200 open pages: {path}"] = opened
    finally:
        database.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=folder_for, required=True, help="folder for dashboard.json")
    parser.add_argument("--requests", type=int, default=100, help="of each page")
    parser.add_argument("--seconds", type=float, default=30.0, help="that pages are left open")
    parser.add_argument(
        "--live", default="/dashboard/live", help="what open pages ask for; {job_id} is a running job's"
    )
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, default=list(PARTS), help="of the rest the result stays"
    )
    parser.add_argument("--databases", nargs="+", default=["sqlite", "postgresql"])
    arguments = parser.parse_args()
    target = arguments.out / "dashboard.json"
    result: dict[str, Any] = json.loads(target.read_text()) if target.exists() else {}
    with tempfile.TemporaryDirectory(prefix="autoclave-pages-") as folder, servers(Path(folder)) as urls:
        for name in arguments.databases:
            found = measure(
                urls[name],
                urls["broker"],
                parts=arguments.parts,
                requests=arguments.requests,
                seconds=arguments.seconds,
                path=arguments.live,
            )
            result[name] = {**result.get(name, {}), **found}
            print(name, json.dumps(found, indent=2), flush=True)
    result["machine"] = machine("fastapi", "starlette", "uvicorn", "sqlalchemy", "psycopg", "jinja2")
    target.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
