"""What goes wrong between a terminal and a server: one line, an exit status, and no key in it."""

from __future__ import annotations

import http.server
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service import auth
from service.db import Database
from service.scopes import Scope
from tests.builders import Tenant, make_job, make_tenant
from tests.workers.jobs_cli.conftest import Server, Terminal, terminal_of
from workers.jobs_cli.client import checked_base_url, checked_key
from workers.jobs_cli.errors import RefusedError


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000/v1"),
        ("https://api.example.com/", "https://api.example.com/v1"),
        ("https://example.com/autoclave/v1/", "https://example.com/autoclave/v1"),
    ],
)
def test_base_urls(given: str, used: str) -> None:
    assert checked_base_url(given) == used


@given(
    st.one_of(
        st.text(),
        st.sampled_from(
            ["", "8000", "ftp://x/v1", "http://", "http://u:p@x/v1", "http://x/v1?a=b", "http://[::1"]
        ),
    )
)
def test_what_is_no_url_is_refused(text: str) -> None:
    with pytest.raises(RefusedError, match="no base URL"):
        checked_base_url(text)


@pytest.mark.parametrize("key", ["", "  \n", "sk-a b", "sk-\u00e4", "sk-a\nsk-b"])
def test_what_is_no_key_is_refused_and_not_repeated(key: str) -> None:
    with pytest.raises(RefusedError, match=r"^FILE holds no API key \(sk-\.\.\.\)$"):
        checked_key(key, key_from="FILE")


def test_a_key_from_a_file(terminal: Terminal, tenant: Tenant, tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(f"{tenant.key}\n")
    assert terminal.run("list", "--json", "--api-key-file", str(file), AUTOCLAVE_API_KEY="").stdout == ""
    assert f"{tmp_path}/none: No such file" in terminal.refused("list", "--api-key-file", f"{tmp_path}/none")


def test_no_key(terminal: Terminal) -> None:
    message = "error: no API key: set AUTOCLAVE_API_KEY, or name a file with --api-key-file\n"
    assert terminal.refused("list", AUTOCLAVE_API_KEY="") == message


@pytest.mark.parametrize("command", ["list", "show", "watch", "events", "report", "download", "cancel"])
def test_a_wrong_key_is_one_line(terminal: Terminal, command: str, tmp_path: Path) -> None:
    job = [] if command == "list" else ["ftjob-x"]
    more = ["--out", f"{tmp_path}/x"] if command == "download" else []
    said = terminal.refused(command, *job, *more, AUTOCLAVE_API_KEY="sk-wrong")
    assert said.count("\n") == 1
    assert "refuses the key from AUTOCLAVE_API_KEY" in said
    assert "sk-wrong" not in said


@pytest.mark.parametrize("command", ["list", "watch", "events", "download", "pause"])
def test_a_dead_server_is_one_line_at_once(
    server: Server, tenant: Tenant, command: str, tmp_path: Path
) -> None:
    server.stop()
    job = [] if command == "list" else ["ftjob-x"]
    more = ["--out", f"{tmp_path}/x"] if command == "download" else []
    began_at = time.monotonic()
    said = terminal_of(server.url, tenant).refused(command, *job, *more, exit_code=4)
    assert said == f"error: cannot reach {server.url}: [Errno 111] Connection refused\n"
    assert time.monotonic() - began_at < 5


def test_a_foreign_job_and_one_that_is_none_are_the_same(
    terminal: Terminal, database: Database, tmp_path: Path
) -> None:
    stranger = make_tenant(database, name="Stranger")
    with database.transaction() as session:
        foreign = make_job(session, stranger.project_id).id
    for command in ("show", "watch", "events", "metrics", "report", "download", "cancel", "pause", "retry"):
        more = ["--out", f"{tmp_path}/x"] if command == "download" else []
        said = [terminal.refused(command, id, *more) for id in (foreign, "ftjob-none")]
        assert said[0].replace(foreign, "ID") == said[1].replace("ftjob-none", "ID")
        assert said[0].count("\n") == 1
        assert foreign in said[0]
    assert not list(tmp_path.glob(".*part*"))


@pytest.mark.parametrize("job_id", ["../files", "a/b", "..", "ä?x=1", "x\x1b[2J"])
def test_an_id_leads_nowhere_else(terminal: Terminal, job_id: str) -> None:
    said = terminal.refused("show", job_id)
    assert "\x1b" not in said
    assert "job" in said


def test_a_key_that_may_not(api_url: str, database: Database, tenant: Tenant) -> None:
    with database.transaction() as session:
        _, key = auth.create_api_key(
            session, project_id=tenant.project_id, name="reader", scopes=[Scope.FILES_READ], now=time.time()
        )
    reader = Tenant(tenant.organization_id, tenant.project_id, key)
    assert "jobs:read" in terminal_of(api_url, reader).refused("list")


@contextmanager
def other_server(status: int, body: bytes, **headers: str) -> Iterator[tuple[str, list[str | None]]]:
    """Something that is no Autoclave; the keys that it was sent."""
    keys: list[str | None] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            keys.append(self.headers["Authorization"])
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/v1", keys
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("status", "body", "exit_code", "words"),
    [
        (200, b"<html>hello</html>", 3, "answered no JSON; is"),
        (200, b"[]", 3, "answered no JSON; is"),
        (404, b"not here", 3, "answered 404; is"),
        (502, b"<html>bad gateway</html>", 4, "answered 502; is"),
    ],
)
def test_another_server(tenant: Tenant, status: int, body: bytes, exit_code: int, words: str) -> None:
    with other_server(status, body) as (url, _):
        said = terminal_of(url, tenant).refused("list", exit_code=exit_code)
    assert words in said
    assert said.count("\n") == 1


def test_the_key_is_sent_to_nobody_else(tenant: Tenant) -> None:
    with (
        other_server(200, b"{}") as (elsewhere, stolen),
        other_server(307, b"", Location=elsewhere) as (url, keys),
    ):
        assert "answered 307" in terminal_of(url, tenant).refused("list")
    assert keys == [f"Bearer {tenant.key}"]
    assert stolen == []


def test_no_proxy_is_asked_for_this_machine(terminal: Terminal) -> None:
    assert terminal.run("list", "--json", HTTP_PROXY="http://127.0.0.1:9", http_proxy="http://127.0.0.1:9")
