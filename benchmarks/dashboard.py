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
import asyncio
import http.client
import json
import random
import re
import statistics
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import psutil
from job_requests import batches, servers
from machine import machine
from servers import bare_api, our_api
from sqlalchemy import insert, text, update

from autoclave.spec import JobSpec, SafetyProfile
from service import auth, schema
from service.catalog import register_base
from service.dashboard.page_route import COOKIE
from service.db import Database
from service.fleet.presence import Sighting, see
from service.fleet.states import WorkerState
from service.jobs.metrics import add_steps
from service.models import File, Job, SafetyFigures
from service.operators import create_operator_key

NUM_JOBS = 10_000
NUM_PROJECTS = 40
NUM_WORKERS = 16
NUM_OPEN = 200
ASK_SECONDS = 3.0
SETTLING_SECONDS = 75.0
PAGES = ("/dashboard", "/dashboard/jobs", "/dashboard/safety", "/dashboard/tenants", "/dashboard/audit")
BASE_ID = "autoclave/benchmark-base"
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
        profile = SafetyProfile(version="1", realign="/r", harmful_eval="/e", judge="refusal")
        register_base(
            session,
            id=BASE_ID,
            revision="1",
            path="/nowhere",
            sha256="b" * 64,
            alignment_method="sft",
            default_spec=JobSpec(),
            safety_profile=profile,
            now=now,
        )
        owners = []
        for number in range(NUM_PROJECTS):
            organization = auth.create_organization(session, name=f"Organization {number}", now=now)
            project = auth.create_project(
                session, organization_id=organization.id, name=f"Project {number}", now=now
            )
            _, key = auth.create_api_key(session, project_id=project.id, name="benchmark", now=now)
            file = File(
                id=f"file-{number}",
                project_id=project.id,
                filename="train.jsonl",
                purpose="fine-tune",
                bytes=100,
                sha256="a" * 64,
                storage_key=f"files/{number}",
                status="processed",
                num_examples=10,
                created_at=now,
            )
            session.add(file)
            session.flush()
            owners.append((project.id, organization.id, file.id, key))
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


def sign_in(port: int, key: str) -> str:
    """The cookie."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    headers = {"content-type": "application/x-www-form-urlencoded"}
    connection.request("POST", "/signin", urlencode({"key": key}), headers)
    answer = connection.getresponse()
    if answer.status != 303:
        raise SystemExit(f"signing in: {answer.status}")
    cookie = answer.headers["set-cookie"].partition(";")[0]
    connection.close()
    assert cookie.startswith(f"{COOKIE}="), cookie
    return cookie


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


async def _left_open(port: int, path: str, cookies: list[str], counts: Counter[str]) -> None:
    version = re.compile(rb"[?;&]seen=([\w.:-]+)(?:&amp;every=(\d+))?")
    curve = path.removesuffix("live") + "metrics.json" if "/jobs/" in path else None

    async def page(number: int, cookie: str) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.sleep(ASK_SECONDS * number / len(cookies))
        seen, every, step = b"", int(ASK_SECONDS), 0
        while True:
            asked_at = time.monotonic()
            body = await get(reader, writer, f"{path}?every={every}&seen={seen.decode()}", cookie)
            counts["unchanged" if body is None else "changed"] += 1
            if body is not None:
                found = version.search(body)
                assert found is not None, body
                seen, every = found[1], int(found[2] or ASK_SECONDS)
                if curve is not None:
                    points = json.loads(await get(reader, writer, f"{curve}?after={step}", cookie) or "{}")
                    step = max(points["step"], default=step)
                    counts["curves"] += 1
            await asyncio.sleep(max(0.0, asked_at + every - time.monotonic()))

    async def get(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter, target: str, cookie: str
    ) -> bytes | None:
        request = f"GET {target} HTTP/1.1\r\nHost: 127.0.0.1\r\nHX-Request: true\r\nCookie: {cookie}\r\n\r\n"
        writer.write(request.encode())
        head = await reader.readuntil(b"\r\n\r\n")
        if head.startswith(b"HTTP/1.1 204"):
            return None
        if not head.startswith(b"HTTP/1.1 200"):
            raise SystemExit(f"{target}: {head!r}")
        return await reader.readexactly(
            int(head.lower().partition(b"content-length: ")[2].partition(b"\r")[0])
        )

    await asyncio.gather(*(page(number, cookie) for number, cookie in enumerate(cookies)))


async def _measured(
    port: int, path: str, cookies: list[str], process: psutil.Process, seconds: float
) -> tuple[Counter[str], float, float]:
    """(answers, processor seconds, seconds), after the pages have been open for a while."""
    counts: Counter[str] = Counter()
    pages = asyncio.create_task(_left_open(port, path, cookies, counts))
    await asyncio.sleep(SETTLING_SECONDS)
    if pages.done():
        await pages
    counts.clear()
    before, started = processor_seconds(process), time.monotonic()
    await asyncio.sleep(seconds)
    used, lasted = processor_seconds(process) - before, time.monotonic() - started
    pages.cancel()
    await asyncio.gather(pages, return_exceptions=True)
    return counts, used, lasted


def processor_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def left_open(
    database: Database, filled: Filled, port: int, pid: int, *, path: str, seconds: float
) -> dict[str, Any]:
    key = filled.project_key if path.startswith("/app") else filled.operator_key
    path = path.format(job_id=filled.running[0])
    cookies = [sign_in(port, key) for _ in range(NUM_OPEN)]
    process = psutil.Process(pid)
    time.sleep(1.0)
    with working(database, filled.running):
        before, started = processor_seconds(process), time.monotonic()
        time.sleep(seconds / 3)
        idle = (processor_seconds(process) - before) / (time.monotonic() - started)
        counts, used, lasted = asyncio.run(_measured(port, path, cookies, process, seconds))
    return {
        "path": path,
        "pages": NUM_OPEN,
        "asked_every_seconds": round(lasted * NUM_OPEN / (counts["changed"] + counts["unchanged"]), 1),
        "seconds": round(lasted, 1),
        "answers": dict(counts),
        "processor_seconds": round(used, 2),
        "percent_of_one_core": round(100 * used / lasted, 1),
        "percent_of_one_core_without_pages": round(100 * idle, 1),
    }


def measure(url: str, broker_url: str, *, requests: int, seconds: float, path: str) -> dict[str, Any]:
    schema.upgrade(url)
    database = Database.from_url(url)
    filled = fill(database)
    try:
        with tempfile.TemporaryDirectory(prefix="autoclave-storage-") as folder:
            environment = {"DATABASE_URL": url, "STORAGE_URL": f"file://{folder}", "FOLDER": folder}
            environment |= {"BROKER_URL": broker_url, "RATE_READS_PER_MINUTE": "100000000"}
            with our_api(environment) as (port, pid), bare_api(environment) as (bare_port, _):
                cookie = sign_in(port, filled.operator_key)
                found = pages(port, bare_port, cookie, requests=requests)
                opened = left_open(database, filled, port, pid, path=path, seconds=seconds)
    finally:
        database.close()
    return {"10,000 jobs": found, "200 open pages": opened}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for dashboard.json")
    parser.add_argument("--requests", type=int, default=100, help="of each page")
    parser.add_argument("--seconds", type=float, default=30.0, help="that pages are left open")
    parser.add_argument(
        "--live", default="/dashboard/live", help="what open pages ask for; {job_id} is a running job's"
    )
    parser.add_argument("--databases", nargs="+", default=["sqlite", "postgresql"])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="autoclave-pages-") as folder, servers(Path(folder)) as urls:
        result: dict[str, Any] = {"command": "python benchmarks/dashboard.py --out benchmarks/results"}
        for name in arguments.databases:
            result[name] = measure(
                urls[name],
                urls["broker"],
                requests=arguments.requests,
                seconds=arguments.seconds,
                path=arguments.live,
            )
            print(name, json.dumps(result[name], indent=2), flush=True)
    result["machine"] = machine("fastapi", "starlette", "uvicorn", "sqlalchemy", "psycopg", "jinja2")
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "dashboard.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
