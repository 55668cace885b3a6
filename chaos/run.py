"""One run: the deployment starts, users and faults do what they do, all heals, the audit looks."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from chaos.audit import audit
from chaos.clients import Clients, GaveUpError
from chaos.end_state import EndState, JobRow, read_database, read_storage, stored_keys, try_routes
from chaos.faults import Done, Faults
from chaos.fleet import Fleet
from chaos.processes import marked
from chaos.schedule import Fault
from chaos.watcher import TERMINAL, Watcher
from service.adapters.links import LinkClaims, link_secret, make_token
from service.db import Database

AT_ONCE = 6
"""Faults in force at the same time, those included that wait for a job to enter their stage."""
STALLED_SECONDS = 40.0
"""A fault comes after this, also if no job ended meanwhile."""
TEND_SECONDS = 0.1
SWEEP_SECONDS = 30.0


@dataclass
class Outcome:
    state: EndState
    violations: dict[str, list[str]]
    done: list[Done] = field(default_factory=list)
    num_retries: int = 0
    out_of_time: bool = False


class Run:
    def __init__(
        self,
        fleet: Fleet,
        faults: Sequence[Fault],
        *,
        num_jobs: int,
        most_open: int,
        seed: int,
        seconds: float,
        say: Callable[[str], None],
    ) -> None:
        self._fleet = fleet
        self._plan = list(faults)
        self._num_jobs = num_jobs
        self._most_open = most_open
        self._seed = seed
        self._deadline = time.monotonic() + seconds
        self._say = say
        self._began = time.monotonic()
        self._said_at = 0.0
        self._done: list[Done] = []
        self._in_force: list[threading.Thread] = []
        self._errors: list[str] = []

    def go(self) -> Outcome:
        """The fleet runs; it does not any more afterwards."""
        fleet = self._fleet
        fleet.wait_for_api()
        state = EndState()
        with Watcher(fleet.postgres) as watcher:
            clients = Clients(
                fleet,
                watcher,
                num_jobs=self._num_jobs,
                most_open=self._most_open,
                seed=self._seed,
                on_error=self._errors.append,
            )
            with clients:
                self._storm(watcher, clients)
                out_of_time = self._calm(watcher, clients)
            state.acknowledged = {key: set(ids) for key, ids in clients.acknowledged.items()}
            self._read(state)
        return Outcome(state, audit(state), self._done, clients.num_retries, out_of_time)

    def _storm(self, watcher: Watcher, clients: Clients) -> None:
        """Until the plan is through and every job has ended, or time is over."""
        faults = Faults(self._fleet, watcher, clients)
        waiting, last_at = list(self._plan), time.monotonic()
        while time.monotonic() < self._deadline:
            self._tend(watcher, len(waiting))
            num_ended = sum(s.status in TERMINAL for s in watcher.jobs().values())
            stalled = time.monotonic() - last_at > STALLED_SECONDS
            due = waiting and (stalled or num_ended >= waiting[0].after_jobs)
            if due and len(self._in_force) < AT_ONCE and watcher.num_open():
                self._launch(faults, waiting.pop(0))
                last_at = time.monotonic()
            if clients.is_done() and not self._in_force and (not waiting or not watcher.num_open()):
                return

    def _launch(self, faults: Faults, fault: Fault) -> None:
        def work() -> None:
            done = faults.inject(fault)
            self._done.append(done)
            self._say(f"  {'+' if done.hit else '-'} {fault.label}: {done.what} {done.figures or ''}")

        thread = threading.Thread(target=work, name=fault.label)
        thread.start()
        self._in_force.append(thread)

    def _calm(self, watcher: Watcher, clients: Clients) -> bool:
        """Everything heals, and what is left of the jobs ends. True if it did not in time."""
        clients_left = not clients.is_done()
        while self._in_force:
            self._tend(watcher, 0)
        self._fleet.heal()
        # Twice as long as a lease may be tried over and over, and never less than the time that is left.
        until = max(self._deadline, time.monotonic() + 240.0)
        while watcher.num_open() and time.monotonic() < until:
            self._tend(watcher, 0)
            for sight in watcher.jobs().values():
                if sight.status == "paused":
                    with suppress(GaveUpError):
                        user = clients.users[sight.project_id]
                        user.insist("POST", f"/fine_tuning/jobs/{sight.job_id}/resume")
        return clients_left or watcher.num_open() > 0

    def _tend(self, watcher: Watcher, num_waiting: int) -> None:
        self._fleet.tend()
        self._in_force = [thread for thread in self._in_force if thread.is_alive()]
        if time.monotonic() - self._said_at > 15.0:
            self._said_at = time.monotonic()
            counts = " ".join(f"{status}={count}" for status, count in sorted(watcher.counts().items()))
            minutes = (time.monotonic() - self._began) / 60
            hit = sum(done.hit for done in self._done)
            self._say(f"[{minutes:5.1f} min] {counts}; faults: {hit} injected, {num_waiting} to come")
        time.sleep(TEND_SECONDS)

    def _read(self, state: EndState) -> None:
        """Sweep, ask every route, stop all processes, then read what is left."""
        fleet = self._fleet
        # A maintenance process sweeps when it starts.
        sweeper = fleet.maintenance()[0]
        sweeper.stop()
        sweeper.held_down = False
        sweeper.start()
        fleet.wait_for_api()
        with fleet.postgres.connect() as connection:
            read_database(connection, state)
        self._wait_for_sweep(state.kept_prefixes)
        database = Database.from_url(fleet.postgres.url)
        try:
            secret = link_secret(database, None)
            with fleet.postgres.connect() as connection:
                made_by = {
                    str(row[0]): str(row[1])
                    for row in connection.execute("SELECT project_id, id FROM api_keys").fetchall()
                }
        finally:
            database.close()

        def forge(job: JobRow, sha256: str) -> str:
            claims = LinkClaims(
                project_id=job.project_id,
                model_id=job.model_id,
                sha256=sha256,
                file=None,
                made_by=made_by[job.project_id],
                expires_at=time.time() + 600,
            )
            return make_token(claims, secret)

        keys = {tenant.project_id: tenant.key for tenant in fleet.tenants}
        try_routes(fleet.url, keys, forge, state)
        unwilling = fleet.stop()
        state.observed = [text for done in self._done for text in done.wrong] + self._errors
        state.observed += [f"{name} did not end within 30 s of SIGTERM" for name in unwilling]
        state.cancelled = {d.job_id for d in self._done if d.cancel_accepted and d.job_id is not None}
        state.processes = marked(fleet.run_id)
        read_storage(fleet.store.endpoint, fleet.store.bucket, state)

    def _wait_for_sweep(self, kept: frozenset[str]) -> None:
        """What is left below `private/` is the audit's business; this only gives the sweep its time."""
        deadline = time.monotonic() + SWEEP_SECONDS
        while time.monotonic() < deadline:
            self._fleet.tend()
            left = stored_keys(self._fleet.store.endpoint, self._fleet.store.bucket)
            if all(key.rpartition("/")[0] in kept for key in left if key.startswith("private/")):
                return
            time.sleep(1.0)
