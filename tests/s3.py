"""A real S3 protocol without Amazon: moto's server on loopback, and a proxy that fails on demand."""

from __future__ import annotations

import http.client
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import botocore.session
from moto.server import ThreadedMotoServer

ACCESS_KEY = "AKIAOFTHETESTS000000"
SECRET_KEY = "the-secret-key-of-the-tests"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY}


@contextmanager
def moto_server() -> Iterator[str]:
    """The endpoint's URL."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        _, port = server.get_host_and_port()
        yield f"http://127.0.0.1:{port}"
    finally:
        server.stop()


@contextmanager
def s3_client(endpoint: str) -> Iterator[Any]:
    client = botocore.session.get_session().create_client(
        "s3",
        endpoint_url=endpoint,
        region_name="us-east-1",
        aws_access_key_id=ACCESS_KEY,
        aws_secret_access_key=SECRET_KEY,
    )
    try:
        yield client
    finally:
        client.close()


def new_bucket(endpoint: str) -> str:
    name = f"test-{uuid.uuid4().hex}"
    with s3_client(endpoint) as client:
        client.create_bucket(Bucket=name)
    return name


def unfinished_uploads(endpoint: str, bucket: str) -> list[str]:
    """Their keys in the bucket."""
    with s3_client(endpoint) as client:
        return [each["Key"] for each in client.list_multipart_uploads(Bucket=bucket).get("Uploads", ())]


def everything_in(endpoint: str, bucket: str) -> list[str]:
    with s3_client(endpoint) as client:
        return [each["Key"] for each in client.list_objects_v2(Bucket=bucket).get("Contents", ())]


@dataclass(frozen=True)
class Fault:
    """What happens to one request in place of an answer. `late`: after the store did what it was asked."""

    status: int = 0
    code: str = "InternalError"
    drop: bool = False
    seconds: float = 0.0
    """Of silence, before the request goes on."""
    body_bytes: int | None = None
    """So much of the answer's body, then the connection is lost."""
    late: bool = False


SLOW_DOWN = Fault(503, "SlowDown")
DROP = Fault(drop=True)
Rule = Callable[[str, str], Fault | None]


class FaultyS3:
    """A proxy before a store. `rule` says what befalls a request, by its method and path."""

    def __init__(self, upstream: str) -> None:
        self._upstream = upstream.removeprefix("http://")
        self.rule: Rule = lambda _method, _path: None
        self.requests: list[tuple[str, str]] = []
        self._stopping = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), name="faulty-s3")
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def fail(self, fault: Fault, *, times: int = 10**9, method: str | None = None, path: str = "") -> None:
        """The next requests that fit fail so; then all is well again."""
        left = [times]
        lock = threading.Lock()

        def rule(this_method: str, this_path: str) -> Fault | None:
            fits = method in (None, this_method) and path in this_path
            with lock:
                if not fits or left[0] == 0:
                    return None
                left[0] -= 1
                return fault

        self.rule = rule

    def heal(self) -> None:
        self.rule = lambda _method, _path: None

    def close(self) -> None:
        self._stopping.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                pass

            def do_GET(self) -> None:
                try:
                    self._forward()
                except (BrokenPipeError, ConnectionResetError):
                    self.close_connection = True

            do_HEAD = do_PUT = do_POST = do_DELETE = do_GET  # noqa: N815

            def _forward(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                proxy.requests.append((self.command, self.path))
                fault = proxy.rule(self.command, self.path)
                if fault is not None:
                    deadline = time.monotonic() + fault.seconds
                    while time.monotonic() < deadline and not proxy._stopping.is_set():
                        time.sleep(0.02)
                    if (fault.status or fault.drop) and not fault.late:
                        self._fail(fault)
                        return
                status, headers, answer = self._ask(body)
                if fault is not None and fault.late and (fault.status or fault.drop):
                    self._fail(fault)
                    return
                self.send_response(status)
                length = headers.pop("Content-Length", str(len(answer)))
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", length)
                self.end_headers()
                if fault is not None and fault.body_bytes is not None:
                    self.wfile.write(answer[: fault.body_bytes])
                    self._lose()
                    return
                self.wfile.write(answer)

            def _ask(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
                connection = http.client.HTTPConnection(proxy._upstream, timeout=30)
                try:
                    headers = {k: v for k, v in self.headers.items() if k.lower() != "connection"}
                    connection.request(self.command, self.path, body, headers)
                    response = connection.getresponse()
                    kept = {
                        k: v
                        for k, v in response.getheaders()
                        if k.lower() not in ("connection", "transfer-encoding", "server", "date")
                    }
                    return response.status, kept, response.read()
                finally:
                    connection.close()

            def _fail(self, fault: Fault) -> None:
                if fault.drop:
                    self._lose()
                    return
                # As Amazon's, which repeat what identifies the caller.
                answer = (
                    f"<?xml version='1.0'?><Error><Code>{fault.code}</Code><Message>no</Message>"
                    f"<AWSAccessKeyId>{ACCESS_KEY}</AWSAccessKeyId>"
                    f"<StringToSign>AWS4-HMAC-SHA256 {SECRET_KEY}</StringToSign></Error>"
                ).encode()
                self.send_response(fault.status)
                self.send_header("Content-Type", "application/xml")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(answer)

            def _lose(self) -> None:
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)

        return Handler
