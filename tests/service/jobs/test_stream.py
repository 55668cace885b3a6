"""Events as server-sent events, over a real socket and on both databases."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from openai import OpenAI

from service.db import Database
from service.errors import unauthorized
from service.jobs.events import add_event
from service.jobs.feed import EventFeed
from service.jobs.states import Stage, Status
from service.jobs.stream import Start, event_stream
from service.jobs.transitions import move
from service.models import Job
from tests.builders import Tenant, make_job

sqlite_only = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
TIMEOUT = httpx.Timeout(20.0)


def running_job(database: Database, tenant: Tenant, num_events: int = 0) -> str:
    with database.transaction() as session:
        job_id = make_job(session, tenant.project_id, status="running", stage="publish").id
    for number in range(num_events):
        say(database, job_id, f"event {number}")
    return job_id


def say(database: Database, job_id: str, message: str) -> None:
    with database.transaction() as session:
        session.get_one(Job, job_id, with_for_update=True)
        add_event(session, job_id, message, now=time.time(), data={"of": job_id})


def end(database: Database, job_id: str) -> None:
    with database.transaction() as session:
        move(session, job_id, (Status.CANCELLED, Stage.PUBLISH), message="the end", now=time.time())


def parsed(lines: Iterator[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Pairs of id and data; a blank line ends an event, as the specification has it."""
    fields: dict[str, str] = {}
    for line in lines:
        if not line:
            if "data" in fields:
                yield fields["id"], json.loads(fields["data"])
            fields = {}
        elif not line.startswith(":"):
            name, _, value = line.partition(": ")
            fields[name] = value


def read(
    api_url: str, tenant: Tenant, job_id: str, *, last: str | None = None, at_most: int | None = None
) -> list[tuple[str, dict[str, Any]]]:
    headers = tenant.headers | ({"Last-Event-ID": last} if last else {})
    url = f"{api_url}/fine_tuning/jobs/{job_id}/events"
    found: list[tuple[str, dict[str, Any]]] = []
    with httpx.stream("GET", url, params={"stream": "true"}, headers=headers, timeout=TIMEOUT) as answer:
        assert answer.status_code == 200, answer.read()
        assert answer.headers["content-type"].startswith("text/event-stream")
        for event in parsed(answer.iter_lines()):
            found.append(event)
            if len(found) == at_most:
                break
    return found


def test_old_and_new_events_in_order_until_the_end(api_url: str, database: Database, tenant: Tenant) -> None:
    job_id = running_job(database, tenant, num_events=250)

    def go_on() -> None:
        for number in range(3):
            time.sleep(0.2)
            say(database, job_id, f"live {number}")
        end(database, job_id)

    writer = threading.Thread(target=go_on)
    writer.start()
    found = read(api_url, tenant, job_id)
    writer.join()
    expected = [*(f"event {i}" for i in range(250)), "live 0", "live 1", "live 2", "the end"]
    assert [data["message"] for _, data in found] == expected
    assert all(id == data["id"] for id, data in found)
    assert found[0][1]["object"] == "fine_tuning.job.event"
    assert found[0][1]["data"] == {"of": job_id}


def test_a_client_that_reconnects_misses_nothing_and_sees_nothing_twice(
    api_url: str, database: Database, tenant: Tenant
) -> None:
    job_id = running_job(database, tenant)

    def go_on() -> None:
        for number in range(40):
            say(database, job_id, f"event {number}")
            time.sleep(0.02)
        end(database, job_id)

    writer = threading.Thread(target=go_on)
    writer.start()
    found: list[tuple[str, dict[str, Any]]] = []
    at_most = 1
    while not found or found[-1][1]["message"] != "the end":
        found += read(api_url, tenant, job_id, last=found[-1][0] if found else None, at_most=at_most)
        at_most = at_most % 7 + 1
    writer.join()
    assert [data["message"] for _, data in found] == [*(f"event {i}" for i in range(40)), "the end"]


def test_sixty_clients_that_wait_hold_no_thread_and_no_connection(
    api_url: str, database: Database, tenant: Tenant
) -> None:
    job_ids = [running_job(database, tenant, num_events=1) for _ in range(6)]
    url = f"{api_url}/fine_tuning/jobs"
    started: list[int] = []

    async def listen(client: httpx.AsyncClient, job_id: str) -> list[str]:
        messages: list[str] = []
        target = f"{url}/{job_id}/events"
        async with client.stream("GET", target, params={"stream": "true"}) as answer:
            assert answer.status_code == 200
            async for line in answer.aiter_lines():
                if line.startswith("data: "):
                    messages.append(json.loads(line.removeprefix("data: "))["message"])
                    started.append(1)
        return messages

    async def run() -> list[list[str]]:
        limits = httpx.Limits(max_connections=100)
        async with httpx.AsyncClient(headers=tenant.headers, timeout=TIMEOUT, limits=limits) as client:
            listeners = [asyncio.create_task(listen(client, job_ids[i % 6])) for i in range(60)]
            while len(started) < 60:
                await asyncio.sleep(0.02)
            await asyncio.sleep(1.0)
            busy = []
            for _ in range(20):
                busy.append(database.engine.pool.checkedout())  # type: ignore[attr-defined]
                await asyncio.sleep(0.02)
            assert busy.count(0) >= 10, f"connections in use while all wait: {busy}"
            assert max(busy) <= 2, busy
            # Far more clients wait than there are threads for requests (40), and others are served.
            began = time.monotonic()
            answers = await asyncio.gather(*(client.get(f"{url}/{id}") for id in job_ids))
            assert {answer.status_code for answer in answers} == {200}
            assert time.monotonic() - began < 5
            for job_id in job_ids:
                await asyncio.to_thread(end, database, job_id)
            return await asyncio.gather(*listeners)

    assert asyncio.run(run()) == [["event 0", "the end"]] * 60


@sqlite_only
def test_behind_the_last_event_of_a_job_that_ended_there_is_nothing(
    api_url: str, database: Database, tenant: Tenant
) -> None:
    job_id = running_job(database, tenant, num_events=2)
    end(database, job_id)
    found = read(api_url, tenant, job_id)
    assert [data["message"] for _, data in found] == ["event 0", "event 1", "the end"]
    url = f"{api_url}/fine_tuning/jobs/{job_id}/events?stream=true"
    last = found[-1][0]
    assert httpx.get(url, headers=tenant.headers | {"Last-Event-ID": last}).status_code == 204
    assert httpx.get(f"{url}&after={last}", headers=tenant.headers).status_code == 204
    assert [id for id, _ in read(api_url, tenant, job_id, last=found[0][0])] == [id for id, _ in found[1:]]
    unknown = httpx.get(url, headers=tenant.headers | {"Last-Event-ID": "ftevent-x"})
    assert (unknown.status_code, unknown.json()["error"]["param"]) == (404, "Last-Event-ID")


@sqlite_only
def test_with_the_client(openai_client: OpenAI, database: Database, tenant: Tenant) -> None:
    job_id = running_job(database, tenant, num_events=1)
    end(database, job_id)
    jobs = openai_client.fine_tuning.jobs
    with jobs.with_streaming_response.list_events(job_id, extra_query={"stream": True}) as answer:
        found = list(parsed(answer.iter_lines()))
    assert [data["message"] for _, data in found] == ["event 0", "the end"]


class Direct:
    """A stream without a server around it."""

    def __init__(self, database: Database, job_id: str, still_allowed: Callable[[float], object]) -> None:
        self.feed = EventFeed(database, poll_seconds=0.01)
        self.chunks: list[bytes] = []
        self.stream = event_stream(
            database, self.feed, Start(job_id, 0), still_allowed=still_allowed, heartbeat_seconds=0.1
        )

    async def listen(self) -> None:
        async for chunk in self.stream:
            self.chunks.append(chunk)

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not condition():
                await asyncio.sleep(0.01)


@sqlite_only
def test_silence_is_broken_by_comments_and_closing_ends_it(database: Database, tenant: Tenant) -> None:
    job_id = running_job(database, tenant, num_events=1)

    async def run() -> None:
        direct = Direct(database, job_id, lambda now: None)
        listener = asyncio.create_task(direct.listen())
        await direct.until(lambda: direct.chunks.count(b": waiting\n\n") >= 3)
        assert sum(chunk.startswith(b"id: ") for chunk in direct.chunks) == 1
        direct.feed.close()
        await asyncio.wait_for(listener, 5)
        assert direct.feed.num_waiting == 0

    asyncio.run(run())


@sqlite_only
def test_a_revoked_key_ends_the_stream(database: Database, tenant: Tenant) -> None:
    job_id = running_job(database, tenant, num_events=1)
    revoked = threading.Event()

    def still_allowed(_now: float) -> None:
        if revoked.is_set():
            raise unauthorized()

    async def run() -> None:
        direct = Direct(database, job_id, still_allowed)
        listener = asyncio.create_task(direct.listen())
        await direct.until(lambda: len(direct.chunks) >= 2)
        revoked.set()
        say(database, job_id, "not for them")
        await asyncio.wait_for(listener, 5)
        assert b"not for them" not in b"".join(direct.chunks)

    asyncio.run(run())


@sqlite_only
def test_a_client_that_leaves_is_forgotten_and_polling_stops(database: Database, tenant: Tenant) -> None:
    job_id = running_job(database, tenant)

    async def run() -> None:
        direct = Direct(database, job_id, lambda now: None)
        listener = asyncio.create_task(direct.listen())
        await direct.until(lambda: direct.feed.num_waiting == 1)
        listener.cancel()
        await direct.until(lambda: direct.feed.num_waiting == 0)
        task = direct.feed._task
        assert task is not None
        await direct.until(task.done)

    asyncio.run(run())


@sqlite_only
def test_a_database_that_fails_once_does_not_end_the_feed(
    database: Database, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = running_job(database, tenant, num_events=1)

    async def run() -> bool:
        feed = EventFeed(database, poll_seconds=0.01)
        newest, failures = feed._newest, iter([OSError("gone"), OSError("gone")])

        def failing(job_ids: Any) -> dict[str, int]:
            error = next(failures, None)
            if error is not None:
                raise error
            return newest(job_ids)

        monkeypatch.setattr(feed, "_newest", failing)
        return await feed.wait(job_id, after=0, timeout_seconds=10)

    assert asyncio.run(run()) is True
