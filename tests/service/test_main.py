"""The entry point as an operator runs it: it starts, it stops, and it says in one line why it does not."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from sqlalchemy import select

from service import auth
from service.db import Database
from service.models import ApiKey
from service.startup import StartError, is_loopback
from tests.builders import make_job, make_tenant
from tests.s3 import CREDENTIALS, SLOW_DOWN, Fault, FaultyS3

COMMAND = [sys.executable, "-m", "service.main"]


def environment(**settings: str) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "PYTHONPATH": str(Path(__file__).parents[2]), **settings}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def refusal(*arguments: str, **settings: str) -> str:
    done = subprocess.run(
        [*COMMAND, *arguments],
        env=environment(**settings),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2, done
    assert done.stdout == ""
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    return lines[0]


def test_it_serves_until_it_is_told_to_stop(sqlite_url: str, storage_url: str) -> None:
    """Also while a client listens to a job that does nothing."""
    database = Database.from_url(sqlite_url)
    tenant = make_tenant(database)
    with database.transaction() as session:
        job_id = make_job(session, tenant.project_id).id
    database.close()
    port = free_port()
    process = subprocess.Popen(
        [*COMMAND, "--port", str(port)],
        env=environment(DATABASE_URL=sqlite_url, STORAGE_URL=storage_url),
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                answer = httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=5)
                break
            except httpx.ConnectError:
                assert process.poll() is None, process.communicate()
                assert time.monotonic() < deadline
                time.sleep(0.05)
        assert answer.status_code == 200
        assert "server" not in answer.headers
        in_use = refusal("--port", str(port), DATABASE_URL=sqlite_url, STORAGE_URL=storage_url)
        assert re.search(rf"cannot listen on 127\.0\.0\.1 port {port}: Address already in use", in_use)
        url = f"http://127.0.0.1:{port}/v1/fine_tuning/jobs/{job_id}/events?stream=true"
        with httpx.stream("GET", url, headers=tenant.headers, timeout=20) as stream:
            chunks = stream.iter_bytes()
            assert next(chunks).startswith(b"retry: ")
            process.send_signal(signal.SIGTERM)
            assert b"".join(chunks).replace(b": waiting\n\n", b"") == b""
    finally:
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=30)
    assert process.returncode in (0, -signal.SIGTERM)
    assert "Traceback" not in log
    assert '"event": "request"' in log


def test_settings_are_named(storage_url: str) -> None:
    line = refusal(STORAGE_URL=storage_url, LEASE_TTL_SECONDS="-1")
    assert "DATABASE_URL: Field required" in line
    assert "LEASE_TTL_SECONDS" in line
    assert "docs/configuration.md" in line


@pytest.mark.parametrize(
    ("database_url", "words"),
    [
        ("sqlite:////nowhere/at/all.db", "DATABASE_URL: cannot connect"),
        ("postgresql://user:hunter2@127.0.0.1:1/x", "DATABASE_URL: cannot connect"),
        ("nonsense", "DATABASE_URL: this is not a URL"),
        ("mysql://localhost/x", "DATABASE_URL: 'mysql' is not supported"),
        ("sqlite:///{tmp_path}/empty.db", "run: autoclave admin migrate"),
    ],
)
def test_databases_that_cannot_be_used(
    database_url: str, words: str, storage_url: str, tmp_path: Path
) -> None:
    line = refusal(DATABASE_URL=database_url.format(tmp_path=tmp_path), STORAGE_URL=storage_url)
    assert words in line
    assert "hunter2" not in line


def test_storage_that_cannot_be_used(sqlite_url: str, tmp_path: Path) -> None:
    assert "'ftp://x' is not supported" in refusal(DATABASE_URL=sqlite_url, STORAGE_URL="ftp://x")
    (tmp_path / "taken").write_text("a file")
    line = refusal(DATABASE_URL=sqlite_url, STORAGE_URL=f"file://{tmp_path}/taken/below")
    assert "STORAGE_URL: cannot write to it" in line


@pytest.mark.parametrize(
    ("query", "fault", "words"),
    [
        ("", Fault(404, "NoSuchBucket"), "there is no such bucket"),
        ("", Fault(403, "InvalidAccessKeyId"), "(403 InvalidAccessKeyId); check AWS_ACCESS_KEY_ID"),
        ("", Fault(403, "AccessDenied"), "(403 AccessDenied); check AWS_ACCESS_KEY_ID"),
        ("", SLOW_DOWN, "cannot write to it: the storage does not answer (503 SlowDown)"),
        ("", Fault(seconds=60), "cannot write to it: the storage does not answer (timed out)"),
        ("http://127.0.0.1:1", None, "cannot write to it: the storage does not answer (connection refused)"),
        ("http://no.such.host.invalid", None, "the storage does not answer (unknown host)"),
        ("https://key:hunter2@127.0.0.1", None, "has an endpoint that is not"),
    ],
)
def test_a_bucket_that_cannot_be_used(
    sqlite_url: str, faulty_s3: FaultyS3, query: str, fault: Fault | None, words: str
) -> None:
    if fault is not None:
        faulty_s3.fail(fault)
    settings = {"STORAGE_URL": f"s3://bucket?endpoint={query or faulty_s3.url}", **CREDENTIALS}
    began_at = time.monotonic()
    line = refusal(DATABASE_URL=sqlite_url, **settings)
    assert time.monotonic() - began_at < 30
    assert line.startswith("autoclave api: STORAGE_URL"), line
    assert words in line
    assert not any(secret in line for secret in (*CREDENTIALS.values(), "hunter2"))


def test_a_bucket_that_may_be_written_but_not_listed(
    sqlite_url: str, faulty_s3: FaultyS3, faulty_s3_url: str
) -> None:
    faulty_s3.fail(Fault(403, "AccessDenied"), method="GET")
    line = refusal(DATABASE_URL=sqlite_url, STORAGE_URL=faulty_s3_url, **CREDENTIALS)
    assert "list the bucket" in line


@contextmanager
def running(*arguments: str, **settings: str) -> Iterator[str]:
    """The URL of a server that answers."""
    port = free_port()
    process = subprocess.Popen(
        [*COMMAND, "--port", str(port), *arguments], env=environment(**settings), stderr=subprocess.DEVNULL
    )
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                httpx.get(f"{url}/healthz", timeout=5)
                break
            except httpx.ConnectError:
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.05)
        yield url
    finally:
        process.terminate()
        process.wait(timeout=30)


@pytest.mark.parametrize(
    ("trusted", "believed"), [("none", False), ("127.0.0.1", True), ("192.0.2.1", False)]
)
def test_a_proxy_is_believed_if_it_is_trusted(
    sqlite_url: str, storage_url: str, trusted: str, believed: bool
) -> None:
    """The server that we build on would by itself believe anybody on this machine."""
    with running(DATABASE_URL=sqlite_url, STORAGE_URL=storage_url, TRUSTED_PROXIES=trusted) as url:
        answer = httpx.get(f"{url}/healthz", headers={"x-forwarded-proto": "https"})
    assert ("strict-transport-security" in answer.headers) is believed


def test_no_public_address_with_a_default_key(sqlite_url: str, storage_url: str) -> None:
    """None is built in; the one that `autoclave up` makes by itself counts until it is revoked."""
    places = {"DATABASE_URL": sqlite_url, "STORAGE_URL": storage_url}
    database = Database.from_url(sqlite_url)
    with database.snapshot() as session:
        assert session.scalars(select(ApiKey)).all() == []
    tenant = make_tenant(database)
    with running("--host", "0.0.0.0", **places) as url:
        assert httpx.get(f"{url}/v1/files", headers=tenant.headers).status_code == 200
    with database.transaction() as session:
        key, _ = auth.create_api_key(
            session, project_id=tenant.project_id, name="first", is_default=True, now=time.time()
        )
    line = refusal("--host", "0.0.0.0", "--port", str(free_port()), **places)
    assert f"{key.id}, which `autoclave up` made by itself, can still be used" in line
    assert "--allow-public" in line
    with running("--host", "0.0.0.0", "--allow-public", **places), running(**places):
        pass
    with database.transaction() as session:
        auth.revoke_api_key(session, key_id=key.id, now=time.time())
    with running("--host", "0.0.0.0", **places):
        pass
    database.close()


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("localhost", True), ("::1", True), ("0.0.0.0", False), ("::", False)],
)
def test_what_only_this_machine_reaches(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


def test_a_host_that_is_none() -> None:
    with pytest.raises(StartError, match=r"cannot listen on no\.such\.host\.invalid"):
        is_loopback("no.such.host.invalid")


def test_a_broker_that_cannot_count(sqlite_url: str, storage_url: str) -> None:
    line = refusal(DATABASE_URL=sqlite_url, STORAGE_URL=storage_url, BROKER_URL="amqp://u:hunter2@h")
    assert "BROKER_URL: 'amqp' is not supported" in line
    assert "hunter2" not in line
