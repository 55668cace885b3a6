"""Pages that are left open: what asking again costs the server."""

from __future__ import annotations

import asyncio
import http.client
import json
import re
import time
from collections import Counter
from typing import Any
from urllib.parse import urlencode

import psutil
from filled import Filled, working

from service.dashboard.page_route import COOKIE
from service.db import Database

NUM_OPEN = 200
ASK_SECONDS = 3.0
SETTLING_SECONDS = 75.0


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
