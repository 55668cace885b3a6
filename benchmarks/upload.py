"""A 2 GB dataset through `POST /v1/files`, beside the same bytes through bare streaming endpoints.

    python benchmarks/upload.py --out benchmarks/results

Ours checks every line, hashes and stores; of the bare ones (`bare.py`) one drops the bytes and one writes
them to a file. One client sends the same request body to all in turn, from a file, over loopback. Reported:
seconds of each round, the median of the ratios of a round, and the growth of the API's resident memory
over what it had before the first byte, sampled every 20 ms.
"""

from __future__ import annotations

import argparse
import json
import random
import socket
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil
from jsonl_validation import row
from machine import folder_for, machine
from servers import bare_api, our_api

from service import auth, schema
from service.db import Database

BOUNDARY = "benchmark-boundary"
CHUNK_BYTES = 1 << 20


def write_body(path: Path, kind: str, num_bytes: int) -> int:
    """A multipart body with a dataset of about this size, a block of rows repeated; its number of rows."""
    rng = random.Random(7)  # noqa: S311 - not a secret
    lines = [json.dumps(row(kind, rng), ensure_ascii=False).encode() + b"\n" for _ in range(2000)]
    block = b"".join(lines)
    repeats = -(-num_bytes // len(block))
    with path.open("wb") as file:
        part = f"--{BOUNDARY}\r\nContent-Disposition: form-data; name="
        file.write(f'{part}"purpose"\r\n\r\nfine-tune\r\n'.encode())
        file.write(f'{part}"file"; filename="big.jsonl"\r\n\r\n'.encode())
        for _ in range(repeats):
            file.write(block)
        file.write(f"\r\n--{BOUNDARY}--\r\n".encode())
    return repeats * len(lines)


def post(port: int, path: str, body: Path, headers: dict[str, str]) -> tuple[float, dict[str, Any]]:
    """Seconds from the first byte sent to the answer, and the answer."""
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
    head += f"Content-Length: {body.stat().st_size}\r\n"
    head += "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    with socket.create_connection(("127.0.0.1", port)) as connection, body.open("rb") as file:
        started = time.perf_counter()
        connection.sendall(head.encode() + b"\r\n")
        connection.sendfile(file)
        answer = b""
        while data := connection.recv(1 << 16):
            answer += data
        seconds = time.perf_counter() - started
    status, _, rest = answer.partition(b"\r\n")
    content: dict[str, Any] = json.loads(rest.partition(b"\r\n\r\n")[2])
    if b" 200 " not in status:
        raise SystemExit(f"{path}: {status!r} {content}")
    return seconds, content


class PeakMemory:
    """Highest resident memory of a process while the block runs, in bytes."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.peak = 0

    def _watch(self) -> None:
        while not self._stop.wait(0.02):
            self.peak = max(self.peak, self._process.memory_info().rss)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def measure(folder: Path, kind: str, num_bytes: int, rounds: int) -> dict[str, Any]:
    url = f"sqlite:///{folder}/{kind}.db"
    schema.upgrade(url)
    database = Database.from_url(url)
    with database.transaction() as session:
        now = time.time()
        organization = auth.create_organization(session, name="benchmark", now=now)
        project = auth.create_project(session, organization_id=organization.id, name="benchmark", now=now)
        _, key = auth.create_api_key(session, project_id=project.id, name="benchmark", now=now)
    body = folder / "body"
    num_rows = write_body(body, kind, num_bytes)
    environment = {
        "DATABASE_URL": url,
        "STORAGE_URL": f"file://{folder}/storage-{kind}",
        "MAX_FILE_BYTES": str(4 * 10**9),
        "FOLDER": str(folder),
    }
    headers = {
        "Authorization": f"Bearer {key}",
        "Content-Type": f"multipart/form-data; boundary={BOUNDARY}",
    }
    ours: list[float] = []
    bare: dict[str, list[float]] = {"dropped": [], "written": []}
    with our_api(environment) as (port, pid), bare_api(environment) as (bare_port, _):
        first = psutil.Process(pid).memory_info().rss
        with PeakMemory(pid) as memory:
            for _ in range(rounds):
                seconds, answer = post(port, "/v1/files", body, headers)
                if answer["num_examples"] != num_rows:
                    raise SystemExit(f"expected {num_rows} rows: {answer}")
                ours.append(seconds)
                for name, seconds_of in bare.items():
                    seconds_of.append(post(bare_port, f"/{name}", body, {})[0])
                remove(port, answer["id"], headers["Authorization"])
    size = body.stat().st_size
    body.unlink()
    return {
        "bytes": size,
        "rows": num_rows,
        "seconds": [round(s, 2) for s in ours],
        "bare_seconds": {name: [round(s, 2) for s in bare[name]] for name in bare},
        "megabytes_per_second": round(size / 1e6 / statistics.median(ours)),
        "bare_megabytes_per_second": {
            name: round(size / 1e6 / statistics.median(seconds)) for name, seconds in bare.items()
        },
        "speed_relative_to_bare": {
            name: round(statistics.median(b / a for a, b in zip(ours, seconds, strict=True)), 2)
            for name, seconds in bare.items()
        },
        "memory_growth_mib": round((memory.peak - first) / 2**20, 1),
        "memory_before_mib": round(first / 2**20, 1),
    }


def remove(port: int, file_id: str, authorization: str) -> None:
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(
            f"DELETE /v1/files/{file_id} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
            f"Authorization: {authorization}\r\n\r\n".encode()
        )
        while connection.recv(1 << 16):
            pass


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=folder_for, required=True, help="folder for upload.json")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--bytes", type=int, default=2 * 10**9)
    parser.add_argument("--kinds", nargs="+", default=["instructions", "classification"])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="autoclave-upload-") as folder:
        datasets = {
            kind: measure(Path(folder), kind, arguments.bytes, arguments.rounds) for kind in arguments.kinds
        }
    result = {
        "command": "python benchmarks/upload.py --out benchmarks/results",
        "datasets": datasets,
        "machine": machine("fastapi", "starlette", "uvicorn", "msgspec", "obstore", "python-multipart"),
    }
    (arguments.out / "upload.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
