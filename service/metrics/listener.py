"""`GET /metrics` on an address of its own, never on the public one (docs/decisions/0019)."""

from __future__ import annotations

import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import ClassVar, Self

import structlog
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from service.startup import StartError

log = structlog.get_logger(__name__)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, host: str, port: int, handler: type[BaseHTTPRequestHandler]) -> None:
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        self.address_family = family
        super().__init__((str(address[0]), int(address[1])), handler)

    def handle_error(self, request: object, client_address: object) -> None:
        """A scraper that hangs up is nobody's problem."""


class _Handler(BaseHTTPRequestHandler):
    registry: ClassVar[CollectorRegistry]
    timeout = 10.0
    server_version = "autoclave"
    sys_version = ""

    def do_GET(self) -> None:
        if self.path.partition("?")[0] != "/metrics":
            self._answer(404, "text/plain; charset=utf-8", b"/metrics is the only page here\n")
            return
        encode, content_type = choose_encoder(self.headers.get("Accept", ""))
        self._answer(200, content_type, encode(self.registry))

    def _answer(self, status: int, content_type: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """A line every fifteen seconds would say nothing."""


class MetricsListener:
    """A context manager: serves `registry` while its block runs. Making it raises StartError if the address
    is taken or not ours. Port 0 takes one that is free."""

    def __init__(self, registry: CollectorRegistry, *, host: str, port: int) -> None:
        handler = type("_RegistryHandler", (_Handler,), {"registry": registry})
        try:
            self._server = _Server(host, port, handler)
        except OSError as error:
            reason = error.strerror or str(error)
            raise StartError(
                f"METRICS_HOST, METRICS_PORT: cannot listen on {host} port {port}: {reason}"
            ) from error
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        log.info("metrics are served", port=self.port)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=10)
