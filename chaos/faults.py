"""How each kind of fault is brought about. A fault runs in a thread of its own and heals what it broke."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import psutil  # type: ignore[import-untyped]
from kombu.exceptions import OperationalError as BrokerError

from chaos import faults_of_servers
from chaos.clients import Clients, GaveUpError, User
from chaos.fleet import LEASE_SECONDS, Fleet
from chaos.processes import Process, wait_until_gone
from chaos.schedule import WAITING, Fault
from chaos.watcher import TERMINAL, Sight, Watcher

STAGE_WAIT_SECONDS = 120.0
STARTS_SECONDS = 15.0
CHILD_GONE_SECONDS = 5.0
ARMED_SECONDS = 90.0
DRAINED_SECONDS = 90.0
"""Other faults may hold it up meanwhile."""
# Faults of one server come one after the other.
_GROUPS = {
    kind: kind.split()[-1]
    for kind in ("restart broker", "wipe broker", "restart database", "crash database", "full disk")
} | {
    "lose messages": "broker",
    "duplicate messages": "broker",
    "storage errors": "storage",
    "storage outage": "storage",
    "slow storage": "storage",
}


@dataclass
class Done:
    """What became of a fault. `hit`: whether it was injected; else `what` says why not."""

    fault: Fault
    hit: bool
    what: str
    at: float
    seconds: float = 0.0
    job_id: str | None = None
    fencing: int | None = None
    cancel_accepted: bool = False
    figures: dict[str, float] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    """What must not happen and did: the audit reports it."""


class Missed(Exception):  # noqa: N818 - not an error
    """What the fault should hit was not there in time."""


class Faults:
    def __init__(self, fleet: Fleet, watcher: Watcher, clients: Clients) -> None:
        self._fleet = fleet
        self._watcher = watcher
        self._clients = clients
        self._locks = {group: threading.Lock() for group in {*_GROUPS.values(), ""}}
        self._by_kind: dict[str, Callable[[Fault, Done], None]] = {
            "kill child": self._kill_child,
            "kill worker": self._kill_worker,
            "kill worker before it concludes": self._trap("worker-before-conclude"),
            "kill worker after it concluded": self._trap("worker-after-conclude"),
            "drain worker": self._drain_worker,
            "stop worker past its lease": self._stop_worker,
            "stop worker and child past its lease": self._stop_worker,
            "cancel a child that hangs": self._cancel_hanging,
            "kill api": self._kill("api"),
            "kill api between commit and answer": self._trap("api-after-commit"),
            "kill maintenance": self._kill("maintenance"),
            "kill maintenance between commit and publish": self._trap("maintenance-before-send"),
            "kill maintenance between send and note": self._trap("maintenance-after-send"),
            "clock jump of a worker": self._jump("worker"),
            "clock jump of maintenance": self._jump("maintenance"),
            "clock jump of the api": self._jump("api"),
            "cancel": self._cancel,
            "pause and resume": self._pause,
        }

    def inject(self, fault: Fault) -> Done:
        """Return when it is over. Raises nothing."""
        began, done = time.monotonic(), Done(fault, hit=False, what="", at=time.time())
        try:
            if fault.kind in self._by_kind:
                self._by_kind[fault.kind](fault, done)
            else:
                with self._locks[_GROUPS[fault.kind]]:
                    faults_of_servers.inject(fault, self._fleet, self._watcher, done)
            done.hit = True
        except (Missed, GaveUpError, BrokerError) as reason:
            done.what = f"missed: {reason}"
        except Exception as error:
            done.what = f"{type(error).__name__}: {error}"
            done.wrong.append(f"the fault itself failed: {done.what}")
        done.seconds = round(time.monotonic() - began, 1)
        return done

    # What it hits.

    def _running(self, fault: Fault, done: Done) -> tuple[Sight, Process]:
        """The next job that enters the stage, and its worker. Raises Missed."""
        since = time.monotonic()
        sight = self._watcher.wait_for(
            "running", fault.stage, newer_than=since, timeout_seconds=STAGE_WAIT_SECONDS
        )
        worker = self._fleet.worker_with_pid(sight.worker_pid) if sight else None
        if sight is None or worker is None:
            raise Missed(f"no job entered {fault.stage}")
        done.job_id, done.fencing = sight.job_id, sight.fencing
        return sight, worker

    def _children(self, worker: Process) -> list[psutil.Process]:
        """Of a worker that has just claimed: its child starts within moments, or once the base is loaded."""
        deadline = time.monotonic() + STARTS_SECONDS
        while not (children := worker.jobs()) and time.monotonic() < deadline:
            time.sleep(0.02)
        if not children:
            raise Missed("the job ended first")
        return children

    def _process(self, kind: str, fault: Fault) -> Process:
        group = {
            "worker": self._fleet.workers(),
            "maintenance": self._fleet.maintenance(),
            "api": [self._fleet.processes["api"]],
        }[kind]
        return group[fault.target % len(group)]

    def _user(self, job_id: str) -> User:
        return self._clients.users[self._watcher.jobs()[job_id].project_id]

    # Processes.

    def _kill_child(self, fault: Fault, done: Done) -> None:
        sight, worker = self._running(fault, done)
        child = self._children(worker)[0]
        child.kill()
        done.what = f"child {child.pid} of {worker.name}, {sight.job_id}"

    def _kill_worker(self, fault: Fault, done: Done) -> None:
        sight, worker = self._running(fault, done)
        self._kill_with_children(worker, done)
        done.what = f"{worker.name}, {sight.job_id}"
        # How long until it waits for somebody else, and until somebody has it.
        began = time.monotonic()
        moved = self._watcher.wait_for(
            None, job_id=sight.job_id, newer_than=began, timeout_seconds=4 * LEASE_SECONDS
        )
        if moved is not None:
            done.figures["seconds_until_lease_taken"] = round(moved.at - began, 2)
        taken = self._watcher.wait_for(
            "running", job_id=sight.job_id, newer_than=began, timeout_seconds=4 * LEASE_SECONDS
        )
        if taken is not None and taken.fencing > sight.fencing:
            done.figures["seconds_until_resumed"] = round(taken.at - began, 2)

    def _kill_with_children(self, worker: Process, done: Done) -> None:
        children = worker.children()
        worker.send(signal.SIGKILL)
        began = time.monotonic()
        left = wait_until_gone(children, timeout_seconds=CHILD_GONE_SECONDS)
        done.figures["seconds_until_children_gone"] = round(time.monotonic() - began, 2)
        if left:
            done.wrong.append(f"{len(left)} children outlived {worker.name} by {CHILD_GONE_SECONDS:g} s")

    def _drain_worker(self, fault: Fault, done: Done) -> None:
        sight, worker = self._running(fault, done)
        children = self._children(worker)
        worker.send(signal.SIGTERM)
        began = time.monotonic()
        left = wait_until_gone([psutil.Process(worker.pid), *children], timeout_seconds=DRAINED_SECONDS)
        done.figures["seconds_until_drained"] = round(time.monotonic() - began, 2)
        done.what = f"{worker.name}, {sight.job_id}"
        if left:
            done.wrong.append(f"{worker.name} did not end within {DRAINED_SECONDS:g} s of SIGTERM")

    def _stop_worker(self, fault: Fault, done: Done) -> None:
        """Until its job belongs to somebody else, or to nobody; then it goes on as if nothing had been."""
        sight, worker = self._running(fault, done)
        stopped = [psutil.Process(worker.pid)]
        if "child" in fault.kind:
            stopped += self._children(worker)
        for process in stopped:
            process.suspend()
        try:
            began = time.monotonic()
            lost = None
            while lost is None and time.monotonic() - began < 3 * LEASE_SECONDS:
                now = self._watcher.jobs()[sight.job_id]
                moved = (now.status, now.fencing) != (sight.status, sight.fencing)
                lost = now if moved else None
                time.sleep(0.1)
            if lost is not None and lost.status == "queued":
                self._watcher.wait_for(
                    "running", job_id=sight.job_id, newer_than=began, timeout_seconds=LEASE_SECONDS
                )
        finally:
            for process in stopped:
                if process.is_running():
                    process.resume()
        if lost is None:
            raise Missed("its lease was not taken")
        done.figures["seconds_until_lease_taken"] = round(lost.at - began, 2)
        done.what = f"{worker.name}, {sight.job_id} became {lost.status}"

    def _cancel_hanging(self, fault: Fault, done: Done) -> None:
        sight, worker = self._running(fault, done)
        for child in self._children(worker):
            child.suspend()
        began = time.monotonic()
        answer = self._user(sight.job_id).insist("POST", f"/fine_tuning/jobs/{sight.job_id}/cancel")
        done.cancel_accepted = answer.status_code == 200
        ended = self._watcher.wait_for("cancelled", job_id=sight.job_id, timeout_seconds=60)
        done.what = f"{sight.job_id} on {worker.name}"
        if ended is not None:
            done.figures["seconds_until_cancelled"] = round(ended.at - began, 2)
        elif worker.runs() and self._watcher.jobs()[sight.job_id].status not in TERMINAL:
            done.wrong.append(f"{sight.job_id} hangs and was not cancelled within 60 s")

    def _kill(self, kind: str) -> Callable[[Fault, Done], None]:
        def inject(fault: Fault, done: Done) -> None:
            process = self._process(kind, fault)
            if not process.runs():
                raise Missed(f"{process.name} does not run")
            process.send(signal.SIGKILL)
            done.what = process.name

        return inject

    def _trap(self, name: str) -> Callable[[Fault, Done], None]:
        def inject(_fault: Fault, done: Done) -> None:
            armed = self._fleet.arm(name)
            deadline = time.monotonic() + ARMED_SECONDS
            while armed.exists() and time.monotonic() < deadline:
                time.sleep(0.05)
            if armed.exists():
                armed.unlink(missing_ok=True)
                raise Missed(f"nobody came by {name}")
            done.what = name

        return inject

    def _jump(self, kind: str) -> Callable[[Fault, Done], None]:
        def inject(fault: Fault, done: Done) -> None:
            process = self._process(kind, fault)
            seconds = (3600.0, -3600.0, 2 * LEASE_SECONDS, -2 * LEASE_SECONDS)[fault.target % 4]
            process.shift_clock(seconds)
            time.sleep(fault.seconds)
            process.shift_clock(0.0)
            done.what = f"{process.name} by {seconds:+g} s for {fault.seconds:g} s"

        return inject

    # Owners.

    def _owned(self, fault: Fault, done: Done) -> Sight:
        """A job in the stage, or one that waits. Raises Missed."""
        since = time.monotonic()
        sight = (
            self._watcher.wait_for(WAITING, timeout_seconds=STAGE_WAIT_SECONDS)
            if fault.stage == WAITING
            else self._watcher.wait_for(
                "running", fault.stage, newer_than=since, timeout_seconds=STAGE_WAIT_SECONDS
            )
        )
        if sight is None:
            raise Missed(f"no job entered {fault.stage}")
        done.job_id, done.fencing = sight.job_id, sight.fencing
        return sight

    def _cancel(self, fault: Fault, done: Done) -> None:
        sight = self._owned(fault, done)
        began = time.monotonic()
        answer = self._user(sight.job_id).insist("POST", f"/fine_tuning/jobs/{sight.job_id}/cancel")
        done.what = f"{sight.job_id}: {answer.status_code}"
        if answer.status_code == 400:
            raise Missed("the job ended first")
        done.cancel_accepted = answer.status_code == 200
        ended = self._watcher.wait_for("cancelled", job_id=sight.job_id, timeout_seconds=90)
        if ended is not None:
            done.figures["seconds_until_cancelled"] = round(max(0.0, ended.at - began), 2)

    def _pause(self, fault: Fault, done: Done) -> None:
        sight = self._owned(fault, done)
        user, path = self._user(sight.job_id), f"/fine_tuning/jobs/{sight.job_id}"
        if user.insist("POST", f"{path}/pause").status_code == 400:
            raise Missed("the job ended first")
        paused = self._watcher.wait_for("paused", job_id=sight.job_id, timeout_seconds=45)
        time.sleep(fault.seconds)
        user.insist("POST", f"{path}/resume")
        done.what = f"{sight.job_id}: {'paused' if paused else 'taken back'} and resumed"
