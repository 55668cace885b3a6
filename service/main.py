"""Serve the API: `python -m service.main --host 127.0.0.1 --port 8000`.

Settings come from the environment (docs/configuration.md). What stops it from starting is one line
on stderr and exit status 2, never a traceback.
"""

from __future__ import annotations

import argparse
import socket
import sys
from contextlib import ExitStack

import uvicorn
from fastapi import FastAPI
from redis.exceptions import AuthenticationError, RedisError, ResponseError

from service import log
from service.app import create_app
from service.db import Database
from service.metrics.api import ApiMetrics
from service.metrics.disk import DiskCollector, storage_folder
from service.metrics.fleet import FleetCollector
from service.metrics.listener import MetricsListener
from service.rates.window import WindowStorage
from service.settings import Settings
from service.startup import (
    StartError,
    open_database,
    open_storage,
    require_no_default_key,
    settings_from_environment,
)
from service.tracing import tracer_to


def listen(host: str, port: int) -> socket.socket:
    """Raises StartError if the address is taken or not ours."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        raise StartError(f"cannot listen on {host} port {port}: {error.strerror or error}") from error
    return listener


KEEP_ALIVE_SECONDS = 75
"""An open page asks again within it, and proxies, most of which let go after 60, are never cut off first."""


class _Server(uvicorn.Server):
    """Ends the event streams first: a server that stops waits for its connections."""

    def __init__(self, config: uvicorn.Config, app: FastAPI) -> None:
        super().__init__(config)
        self._app = app

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._app.state.event_feed.close()
        await super().shutdown(sockets)


def serve(*, host: str, port: int, allow_public: bool = False) -> None:
    """`allow_public`: also while a default key is valid. Raises StartError."""
    settings = settings_from_environment()
    log.configure(json=settings.log_json)
    require_broker_rights(settings.broker_url)
    with ExitStack() as stack:
        database = open_database(settings.database_url)
        stack.callback(database.close)
        if not allow_public:
            require_no_default_key(database, host)
        storage = open_storage(settings.storage_url)
        tracer = tracer_to(settings.otel_exporter_otlp_endpoint, service="autoclave-api")
        stack.callback(tracer.close)
        metrics = served_metrics(settings, database, stack)
        app = create_app(settings, database=database, storage=storage, metrics=metrics, tracer=tracer)
        listener = stack.enter_context(listen(host, port))
        proxies = settings.trusted_proxies
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            proxy_headers=proxies != "none",
            forwarded_allow_ips=proxies,
        )
        _Server(config, app).run(sockets=[listener])


def require_broker_rights(broker_url: str) -> None:
    """Raises StartError for a wrong URL or password. That a broker does not answer is no reason not to start:
    requests are not counted until it does."""
    try:
        storage = WindowStorage(broker_url)
    except ValueError as error:
        raise StartError(f"BROKER_URL: {str(error).removeprefix('BROKER_URL: ')}") from error
    try:
        storage.storage.ping()
    except (AuthenticationError, ResponseError) as error:
        raise StartError(f"BROKER_URL: the broker refuses: {error}") from error
    except (RedisError, OSError):
        return
    finally:
        storage.close()


def served_metrics(settings: Settings, database: Database, stack: ExitStack) -> ApiMetrics:
    """Listened for, if the settings say so, until `stack` ends. Raises StartError."""
    metrics = ApiMetrics()
    metrics.registry.register(FleetCollector(database))
    metrics.registry.register(DiskCollector({"storage": storage_folder(settings)}))
    if settings.metrics_port:
        stack.enter_context(
            MetricsListener(metrics.registry, host=settings.metrics_host, port=settings.metrics_port)
        )
    return metrics


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m service.main", description="Serve the API.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="port (default: %(default)s)")
    parser.add_argument(
        "--allow-public", action="store_true", help="listen on any address, also while a default key is valid"
    )
    arguments = parser.parse_args()
    try:
        serve(host=arguments.host, port=arguments.port, allow_public=arguments.allow_public)
    except StartError as error:
        print(f"autoclave api: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
