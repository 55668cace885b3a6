"""`autoclave up` for real: what it starts, what it starts again, and that nothing is left of it."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from tests.waiting import wait_until
from workers.broker import socket_path
from workers.data_dir import DataDir
from workers.embedded import free_port

pytestmark = pytest.mark.slow


class Up:
    def __init__(self, data_dir: Path, log: Path, port: int, *more: str) -> None:
        self.data_dir = data_dir
        self.url = f"http://127.0.0.1:{port}"
        self._log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "workers.cli", "up", *more),
                    *("--port", str(port), "--data-dir", str(data_dir)),
                ],
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def output(self) -> str:
        return self._log.read_text()

    def wait_until_ready(self) -> None:
        wait_until(lambda: "Ctrl-C stops it" in self.output() or self.process.poll() is not None)
        assert self.process.poll() is None, self.output()

    def key(self) -> str:
        return next(word for word in self.output().split() if word.startswith("sk-"))

    def descendants(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def child(self, words: str) -> psutil.Process | None:
        for process in self.descendants():
            try:
                if words in " ".join(process.cmdline()):
                    return process
            except psutil.Error:  # ended meanwhile
                continue
        return None


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Callable[..., Up]]:
    started: list[Up] = []

    def start(data_dir: str = "data", port: int | None = None) -> Up:
        log = tmp_path / f"up-{len(started)}.log"
        started.append(Up(tmp_path / data_dir, log, port or free_port()))
        return started[-1]

    yield start
    for service in started:
        service.process.kill()
        service.process.wait(10)


def test_a_service_from_start_to_ctrl_c(up: Callable[..., Up]) -> None:
    service = up()
    service.wait_until_ready()
    models = httpx.get(f"{service.url}/v1/models", headers={"Authorization": f"Bearer {service.key()}"})
    assert [model["id"] for model in models.json()["data"]] == ["autoclave/microcosm-small"]
    assert service.data_dir.stat().st_mode & 0o777 == 0o700
    assert (service.data_dir / "signing-key.pem").stat().st_mode & 0o777 == 0o600

    # A second one on the same folder, and one on the same port, are refused in one line.
    same_folder, same_port = up(), up("other", int(service.url.rsplit(":", 1)[1]))
    assert same_folder.process.wait(30) == 2
    assert f"already runs on {service.data_dir} (process {service.process.pid})" in same_folder.output()
    assert same_port.process.wait(30) == 2
    assert "choose another --port" in same_port.output()
    assert same_folder.output().count("\n") == same_port.output().count("\n") == 1

    # Whatever dies comes back.
    for words in ("service.main", "workers.worker", "valkey-server"):
        victim = service.child(words)
        assert victim is not None, words
        victim.kill()
        wait_until(lambda dead=victim.pid, words=words: (new := service.child(words)) and new.pid != dead)
    wait_until(lambda: _ready(service.url))

    processes = service.descendants()
    assert len(processes) == 3
    service.process.send_signal(signal.SIGINT)
    assert service.process.wait(30) == 0, service.output()
    assert alive(processes) == []

    # The second start knows the key of the first and does not show it.
    again = up()
    again.wait_until_ready()
    assert "sk-" not in again.output()
    models = httpx.get(f"{again.url}/v1/models", headers={"Authorization": f"Bearer {service.key()}"})
    assert models.status_code == 200
    again.process.send_signal(signal.SIGTERM)
    assert again.process.wait(30) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="needs PR_SET_PDEATHSIG")
def test_kill_9_leaves_nothing_behind(up: Callable[..., Up]) -> None:
    service = up()
    service.wait_until_ready()
    processes = service.descendants()
    assert len(processes) == 3
    service.process.kill()
    wait_until(lambda: alive(processes) == [], timeout_seconds=5)
    # And the folder is free again, once the last of its threads is gone.
    service.process.wait(5)
    with DataDir(service.data_dir).locked():
        pass


def test_a_long_path_gets_a_short_socket(tmp_path: Path) -> None:
    with socket_path(tmp_path / ("x" * 100)) as path:
        assert len(str(path)) < 100
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
    assert not path.parent.exists()


def test_a_data_dir_with_special_characters(tmp_path: Path) -> None:
    from service import schema
    from service.storage import storage_from_url

    data_dir = DataDir(tmp_path / "a b?c#d%20é")
    with data_dir.locked():
        schema.upgrade(data_dir.database_url)
        storage_from_url(data_dir.storage_url).put("files/x", b"1")
    assert (data_dir.path / "autoclave.db").is_file()
    assert (data_dir.path / "storage" / "files" / "x").is_file()
    assert os.listdir(tmp_path) == ["a b?c#d%20é"]


def _ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz").status_code == 200
    except httpx.TransportError:
        return False


def test_no_public_address_with_the_key_it_made_itself(tmp_path: Path) -> None:
    """Neither when it would make one nor while it is valid; nothing is started then."""
    data_dir = tmp_path / "data"
    command = [sys.executable, "-m", "workers.cli", "up", "--data-dir", str(data_dir)]

    def refusal() -> str:
        port = str(free_port())
        done = subprocess.run(
            [*command, "--host", "0.0.0.0", "--port", port],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (done.returncode, done.stdout) == (2, "")
        assert "--allow-public" in done.stderr
        return done.stderr

    assert "would make its first key by itself" in refusal()
    port = free_port()
    up = Up(data_dir, tmp_path / "log", port)
    try:
        up.wait_until_ready()
    finally:
        up.process.send_signal(signal.SIGINT)
        up.process.wait(timeout=60)
    key_ids = re.findall(r"\b(?:op)?key_\w+", refusal())
    assert [key_id.partition("_")[0] for key_id in key_ids] == ["key", "opkey"]
    admin = [sys.executable, "-m", "workers.cli", "admin"]
    place = ["--data-dir", str(data_dir)]
    made = subprocess.run([*admin, "create-key", *place], check=True, capture_output=True, text=True)
    for key_id in key_ids:
        subprocess.run([*admin, "revoke-key", "--key", key_id, *place], check=True, capture_output=True)
    public = Up(data_dir, tmp_path / "log2", port, "--host", "0.0.0.0")
    try:
        public.wait_until_ready()
        headers = {"Authorization": f"Bearer {made.stdout.strip()}"}
        assert httpx.get(f"{public.url}/v1/models", headers=headers).status_code == 200
    finally:
        public.process.send_signal(signal.SIGINT)
        public.process.wait(timeout=60)
