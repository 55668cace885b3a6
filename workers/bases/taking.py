"""Takes a registration of a base between two jobs and has a child carry it out, watched as that of a job is.

    claim -> order.json -> child (watched) -> the base is registered, or why not

Imports no torch. A registration that this process cannot bring to an end stays `running` until its lease runs
out; `workers.maintenance` then passes it on.
"""

from __future__ import annotations

import os
import shutil
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import structlog

from service.bases import lease
from service.bases.lease import RegistrationClaim
from service.db import Database
from service.jobs.transitions import LeaseLostError
from service.models import AlignedBase, BaseRegistration
from service.settings import Settings
from workers import database_outage
from workers.bases.order import RegistrationOrder, environment_for, write_order
from workers.bases.record import RegistrationRecord
from workers.child import ChildProcess, SpawnedProcess
from workers.child_log import ChildLog, log_tail
from workers.endings import Ending
from workers.presence import Presence
from workers.scratch_space import ScratchSpace
from workers.watch import Limits, Watch

log = structlog.get_logger(__name__)

ChildCommand = Callable[[Path, int], list[str]]


def runner_command(order: Path, descriptor: int) -> list[str]:
    return [sys.executable, "-m", "workers.bases.runner", str(order), str(descriptor)]


class RegistrationTaker:
    """`shutdown`, once set, makes `run_next` stop its child and hand the registration back."""

    def __init__(
        self,
        database: Database,
        settings: Settings,
        limits: Limits,
        *,
        owner: str,
        work_dir: Path,
        shutdown: threading.Event,
        scratch_space: ScratchSpace,
        presence: Presence | None = None,
        child_command: ChildCommand = runner_command,
    ) -> None:
        self._database = database
        self._settings = settings
        self._limits = limits
        self._owner = owner
        self._work_dir = work_dir
        self._shutdown = shutdown
        self._scratch_space = scratch_space
        self._presence = presence
        self._child_command = child_command

    def run_next(self) -> bool:
        """Work on the oldest that waits, until it ended or waits again; False if there is none."""
        claim = database_outage.until(self._shutdown, self._claim, what="for a claim")
        if claim is None:
            return False
        names = {"registration_id": claim.registration_id, "attempt": claim.attempt, "worker": claim.owner}
        with ExitStack() as stack:
            stack.enter_context(structlog.contextvars.bound_contextvars(**names))
            if self._presence is not None:
                stack.enter_context(self._presence.working_on(claim.registration_id))
            scratch = self._work_dir / f"{claim.registration_id}-{claim.fencing_number}"
            try:
                self._work(claim, scratch)
            except LeaseLostError as error:
                log.warning("lease lost, nothing written", error=str(error))
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
        return True

    def _claim(self) -> RegistrationClaim | None:
        worker_class = self._settings.worker_class
        with self._database.glance() as session:
            if not lease.any_waits(session, worker_class=worker_class):
                return None
        now = self._database.now()
        with self._database.transaction() as session:
            return lease.claim_next(
                session,
                worker_class=worker_class,
                owner=self._owner,
                ttl_seconds=self._limits.lease_ttl_seconds,
                now=now,
            )

    def _work(self, claim: RegistrationClaim, scratch: Path) -> None:
        ttl_seconds = self._limits.lease_ttl_seconds
        record = RegistrationRecord(
            self._database, claim, lease_ttl_seconds=ttl_seconds, max_attempts=self._limits.max_attempts
        )
        order = database_outage.within_lease(
            lambda: self._order(claim, scratch), lease_ttl_seconds=ttl_seconds, what="for the order"
        )
        log.info("adding a base", base=order.name, source=order.source)
        ending, tail = self._scratch_space.judged(lambda: self._watch_child(order, record), scratch)
        status = database_outage.within_lease(
            lambda: record.conclude(ending, log_tail=tail),
            lease_ttl_seconds=ttl_seconds,
            what="for the ending",
        )
        log.info("base registration over", base=order.name, status=status.value)

    def _order(self, claim: RegistrationClaim, scratch: Path) -> RegistrationOrder:
        with self._database.snapshot() as session:
            row = session.get_one(BaseRegistration, claim.registration_id)
            known = session.get(AlignedBase, row.name)
            return RegistrationOrder(
                registration_id=row.id,
                fencing_number=claim.fencing_number,
                name=row.name,
                source=row.source,
                revision=row.revision,
                profile=row.profile,
                profile_file=row.profile_file,
                profile_is_ours=row.profile_of is not None,
                spec=row.spec,
                template=row.template,
                store=row.store,
                alignment_method=row.alignment_method,
                device=row.device,
                registered_sha256=None if known is None else known.sha256,
                base_folders=self._settings.base_folders,
                scratch=str(scratch),
                attempt=claim.attempt,
                worker=claim.owner,
                request_id=row.request_id,
            )

    def _watch_child(self, order: RegistrationOrder, record: RegistrationRecord) -> tuple[Ending, str]:
        scratch = Path(order.scratch)
        scratch.mkdir(parents=True, exist_ok=True, mode=0o700)
        order_path = scratch / "order.json"
        write_order(order, order_path)
        child_log = ChildLog(scratch / "child.log")
        with ChildProcess(
            lambda handover: SpawnedProcess(
                lambda descriptor: self._child_command(order_path, descriptor), handover
            ),
            log_path=scratch / "child.log",
            environment=environment_for(order, dict(os.environ)),
        ) as child:
            if self._presence is not None:
                self._presence.child_started(child.pid)
            watch = Watch(
                child,
                record,
                self._limits,
                stop_flag=order.stop_flag,
                shutdown=self._shutdown,
                on_heartbeat=child_log.pass_on,
            )
            try:
                ending = watch.run()
            finally:
                child_log.pass_on()
            return ending, log_tail(child.log_path)
