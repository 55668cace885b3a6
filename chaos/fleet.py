"""The deployment under test: one API, workers, two maintenance processes, with a scratch disk per worker."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil  # type: ignore[import-untyped]

from chaos import journal
from chaos.processes import MARK, Process
from chaos.servers import Broker, Postgres, Store, wait_for
from chaos.traps import FOLDER as TRAPS_FOLDER
from chaos.world import register_bases
from service import auth, schema
from service.db import Database
from tests.s3 import CREDENTIALS
from workers.embedded import free_port

SCRATCH_BYTES = 48 * 1024 * 1024
NUM_MAINTENANCE = 2
# Short, so that a lost lease costs seconds; long enough for a machine that others use too.
SETTINGS = {
    "LEASE_TTL_SECONDS": "8",
    "HEARTBEAT_SECONDS": "0.5",
    "MAX_ATTEMPTS": "6",
    "CANCEL_GRACE_SECONDS": "3",
    "PAUSE_GRACE_SECONDS": "20",
    "DRAIN_GRACE_SECONDS": "8",
    "TERMINATE_GRACE_SECONDS": "3",
    "CHECKPOINT_EVERY_SECONDS": "0.1",
    "MAINTENANCE_INTERVAL_SECONDS": "0.4",
    "RESEND_AFTER_SECONDS": "6",
}
LEASE_SECONDS = float(SETTINGS["LEASE_TTL_SECONDS"])


@dataclass(frozen=True)
class Tenant:
    project_id: str
    key: str


class Disk:
    """Scratch space of one worker: a small file system of its own where we may mount one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", f"size={SCRATCH_BYTES},mode=700", "chaos", str(folder)]
        self.is_mounted = (
            shutil.which("mount") is not None
            and subprocess.run(mount, check=False, capture_output=True).returncode == 0
        )

    def fill(self) -> None:
        """Until ENOSPC."""
        block = bytes(64 * 1024)
        with suppress(OSError), (self.folder / "filler").open("ab", buffering=0) as file:
            while file.write(block):
                pass

    def free(self) -> None:
        (self.folder / "filler").unlink(missing_ok=True)

    def close(self) -> None:
        if self.is_mounted:
            subprocess.run(["umount", "-l", str(self.folder)], check=False)


def limit_files(process: psutil.Process, num_bytes: int) -> None:
    """Where nothing can be mounted: no file of this process may grow beyond (EFBIG instead of ENOSPC)."""
    with suppress(psutil.Error):
        _, hard = process.rlimit(psutil.RLIMIT_FSIZE)
        process.rlimit(psutil.RLIMIT_FSIZE, (num_bytes, hard))


class Fleet:
    def __init__(self, folder: Path, world: Path, *, run_id: str, num_workers: int) -> None:
        self.folder = folder
        self.world = world
        self.run_id = run_id
        self.num_workers = num_workers
        self.traps = folder / "traps"
        self.traps.mkdir()
        self.tenants: list[Tenant] = []
        self.disks: list[Disk] = []
        self.processes: dict[str, Process] = {}

    @contextmanager
    def running(self) -> Iterator[Fleet]:
        """Servers and processes; all are gone afterwards."""
        with ExitStack() as stack:
            self.postgres = Postgres()
            stack.callback(self.postgres.close)
            self.broker = Broker(self.folder)
            stack.callback(self.broker.close)
            self.broker.start()
            self.store = Store(self.folder)
            stack.callback(self.store.close)
            self._prepare_database()
            stack.callback(self.stop)
            self._make_processes()
            for disk in self.disks:
                stack.callback(disk.close)
            stack.callback(self.stop)
            for process in self.processes.values():
                process.start()
            yield self

    def _prepare_database(self) -> None:
        schema.upgrade(self.postgres.url)
        with self.postgres.connect() as connection:
            # Nothing here has to survive a power cut; a crash of the server it survives without.
            for setting in ("fsync", "full_page_writes"):
                connection.execute(f"ALTER SYSTEM SET {setting} = off")
            connection.execute("SELECT pg_reload_conf()")
            journal.install(connection)
        database = Database.from_url(self.postgres.url)
        try:
            register_bases(database, self.world)
            now = time.time()
            with database.transaction() as session:
                for number in range(3):
                    organization = auth.create_organization(session, name=f"tenant {number}", now=now)
                    project = auth.create_project(session, organization_id=organization.id, name="p", now=now)
                    _, key = auth.create_api_key(session, project_id=project.id, name="chaos", now=now)
                    self.tenants.append(Tenant(project.id, key))
        finally:
            database.close()

    def _make_processes(self) -> None:
        here = Path(__file__).parent
        path = os.pathsep.join([str(here / "clock"), str(here.parent)])
        environment = {
            **os.environ,
            **CREDENTIALS,
            **SETTINGS,
            "PYTHONPATH": path,
            MARK: self.run_id,
            TRAPS_FOLDER: str(self.traps),
            "DATABASE_URL": self.postgres.url,
            "BROKER_URL": self.broker.url,
            "STORAGE_URL": self.store.url,
            "OMP_NUM_THREADS": "1",
            # Clients of one project ask more often than a person would.
            "RATE_READS_PER_MINUTE": "0",
            "RATE_WRITES_PER_MINUTE": "0",
            "RATE_UPLOADS_PER_MINUTE": "0",
        }
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        commands = {"api": ["api", "--port", str(port)]}
        commands |= {f"maintenance-{number}": ["maintenance"] for number in range(NUM_MAINTENANCE)}
        workers = [f"worker-{number}" for number in range(self.num_workers)]
        commands |= {name: ["worker", "--without-maintenance"] for name in workers}
        for name, arguments in commands.items():
            own = environment
            if name in workers:
                disk = Disk(self.folder / f"scratch-{name}")
                self.disks.append(disk)
                own = environment | {"WORK_DIR": str(disk.folder / "work")}
            self.processes[name] = Process(
                name, ["-m", "chaos.traps", *arguments], environment=own, folder=self.folder
            )

    def tend(self) -> None:
        for process in self.processes.values():
            process.tend()

    def workers(self) -> list[Process]:
        return [process for name, process in self.processes.items() if name.startswith("worker-")]

    def maintenance(self) -> list[Process]:
        return [process for name, process in self.processes.items() if name.startswith("maintenance-")]

    def worker_with_pid(self, pid: int | None) -> Process | None:
        return next((worker for worker in self.workers() if worker.runs() and worker.pid == pid), None)

    def arm(self, trap: str) -> Path:
        path = self.traps / trap
        path.touch()
        return path

    def disarm(self) -> None:
        for path in self.traps.iterdir():
            path.unlink(missing_ok=True)

    def heal(self) -> None:
        """No fault is in force any more."""
        self.disarm()
        self.store.proxy.heal()
        for process in self.processes.values():
            process.shift_clock(0.0)
            process.held_down = False
        for disk in self.disks:
            disk.free()

    def stop(self) -> list[str]:
        """Names of what did not end by itself."""
        return [name for name, process in self.processes.items() if not process.stop()]

    def wait_for_api(self) -> None:
        import httpx

        def ask() -> None:
            httpx.get(f"{self.url}/readyz", timeout=2).raise_for_status()

        wait_for(ask, "the API")
