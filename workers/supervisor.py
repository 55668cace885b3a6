"""Takes the job whose turn it is, runs it in child processes, and writes how it ended. Imports no torch.

    claim -> order.json -> child (watched) -> conclusion -> scratch and private objects deleted, but for
    kept adapters

A job that this process cannot bring to an end (it is killed, it loses the lease or the database) stays
`running` until its lease runs out; the reaper in `workers.maintenance` then passes it on.
"""

from __future__ import annotations

import shutil
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import structlog

from service.db import Database
from service.jobs import lease
from service.jobs.lease import Claim
from service.jobs.metrics import read_points
from service.jobs.results import ResultFile, store_results, validation_loss
from service.jobs.transitions import LeaseLostError
from service.models import Job
from service.quotas.limits import default_quota
from service.scheduling.workers import kind_from_settings
from service.settings import Settings
from service.storage import Storage
from workers.child import WANDB_NAMES, ChildProcess
from workers.endings import Ending, Finished, OutOfMemory
from workers.messages import Noted, Published
from workers.order import Order, write_order
from workers.order_from_job import order_from_job
from workers.record import JobRecord, ring_again
from workers.sweep import sweep_job
from workers.watch import DATABASE_OUTAGE, Limits, Watch

log = structlog.get_logger(__name__)

ChildCommand = Callable[[Path, int], list[str]]
"""From the path of an order and the descriptor for messages to the arguments of the child."""


def runner_command(order: Path, descriptor: int) -> list[str]:
    return [sys.executable, "-m", "workers.runner", str(order), str(descriptor)]


def limits_from_settings(settings: Settings) -> Limits:
    return Limits(**{field: getattr(settings, field) for field in Limits.__dataclass_fields__})


class Supervisor:
    """`shutdown`, once set, makes `run` stop its child and hand the job back; it never claims again."""

    def __init__(
        self,
        database: Database,
        storage: Storage,
        settings: Settings,
        *,
        owner: str,
        work_dir: Path,
        shutdown: threading.Event,
        child_command: ChildCommand = runner_command,
    ) -> None:
        self._database = database
        self._storage = storage
        self._settings = settings
        self._limits = limits_from_settings(settings)
        self._owner = owner
        self._work_dir = work_dir
        self._shutdown = shutdown
        self._child_command = child_command

    def answer(self, rung_for: str) -> None:
        """A doorbell rang, for the job of this id: do what is to be done, job after job, until nothing is
        left for this worker or it shuts down."""
        if self._shutdown.is_set():
            ring_again(self._database, rung_for)
            return
        while not self._shutdown.is_set() and self.run_next():
            pass

    def run_next(self) -> bool:
        """Work on the job whose turn it is until it ended or is back in the queue; False if there is none.
        Doorbells ring more than once."""
        if self._shutdown.is_set():
            return False
        claim = self._claim()
        if claim is None:
            log.info("nothing to claim")
            return False
        job_id = claim.job_id
        bound = log.bind(job_id=job_id, attempt=claim.attempt, fencing_number=claim.fencing_number)
        bound.info("claimed", stage=claim.stage.value)
        scratch = self._work_dir / f"{job_id}-{claim.fencing_number}"
        scratch.mkdir(parents=True, mode=0o700)
        try:
            over = self._work(claim, scratch)
        except LeaseLostError as error:
            bound.warning("lease lost, nothing written", error=str(error))
            return True
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        bound.info("job over" if over else "job handed back")
        if over:
            ttl_seconds = self._settings.kept_adapter_ttl_seconds
            sweep_job(self._database, self._storage, job_id, kept_ttl_seconds=ttl_seconds, now=time.time())
        return True

    def _claim(self) -> Claim | None:
        with self._database.transaction() as session:
            return lease.claim_next(
                session,
                kind=kind_from_settings(self._settings),
                owner=self._owner,
                ttl_seconds=self._limits.lease_ttl_seconds,
                max_attempts=self._limits.max_attempts,
                now=time.time(),
                default_quota=default_quota(self._settings),
            )

    def _work(self, claim: Claim, scratch: Path) -> bool:
        """True if the job is over, False if it is queued again or paused."""
        order = self._order(claim, scratch)
        record = JobRecord(
            self._database,
            claim,
            model_id=order.model_id,
            lease_ttl_seconds=self._limits.lease_ttl_seconds,
            max_attempts=self._limits.max_attempts,
            adapter_ttl_seconds=self._settings.adapter_ttl_seconds,
            kept_checkpoints=self._settings.kept_checkpoints,
            storage=self._storage,
        )
        ending, log_tail = self._watch_child(order, record)
        if isinstance(ending, OutOfMemory):
            record.apply(Noted(text="Out of memory: trying again with half the tokens at once", level="warn"))
            # Read anew: the first child may have finished stages.
            order = msgspec.structs.replace(
                self._order(claim, scratch), model_id=order.model_id, micro_batch_divisor=2
            )
            ending, log_tail = self._watch_child(order, record)
        return self._conclude(record, claim.job_id, ending, log_tail)

    def _order(self, claim: Claim, scratch: Path) -> Order:
        with self._database.snapshot() as session:
            return order_from_job(
                session,
                claim,
                scratch=scratch,
                storage_url=self._settings.storage_url,
                checkpoint_every_seconds=self._settings.checkpoint_every_seconds,
                min_examples=self._settings.min_examples,
                max_line_bytes=self._settings.max_line_bytes,
                signing_key_file=self._settings.signing_key_file,
                wandb_mode=self._settings.wandb_mode_of_jobs,
                wandb_folder=self._wandb_folder(scratch),
            )

    def _wandb_folder(self, scratch: Path) -> Path:
        """Runs that nobody sent must outlive the job's scratch folder, for the operator to sync them."""
        offline = self._settings.wandb_mode_of_jobs == "offline"
        return Path(self._settings.work_dir) / "wandb" if offline else scratch

    def _watch_child(self, order: Order, record: JobRecord) -> tuple[Ending, str]:
        scratch = Path(order.scratch)
        order_path = scratch / "order.json"
        write_order(order, order_path)
        order.stop_flag.unlink(missing_ok=True)
        with ChildProcess(
            lambda descriptor: self._child_command(order_path, descriptor),
            log_path=scratch / "child.log",
            also_passed=WANDB_NAMES if order.wandb is not None else frozenset(),
        ) as child:
            log.info("child started", job_id=order.job_id, pid=child.pid)
            watch = Watch(child, record, self._limits, stop_flag=order.stop_flag, shutdown=self._shutdown)
            ending = watch.run()
            log.info("child ended", job_id=order.job_id, pid=child.pid, ending=type(ending).__name__)
            return ending, child.log_tail()

    def _write_ending(self, record: JobRecord, job_id: str, ending: Ending, log_tail: str) -> bool:
        files: list[ResultFile] = []  # swept up later, should the job end in another way
        if isinstance(ending, Finished) and isinstance(ending.verdict, Published):
            report = ending.verdict.safety_report
            with self._database.snapshot() as session:
                points = read_points(session, job_id)
                loss = validation_loss(session.get_one(Job, job_id), report)
            files = store_results(self._storage, points=points, report=report, valid_loss=loss)
        return record.conclude(ending, log_tail=log_tail, result_files=files)

    def _conclude(self, record: JobRecord, job_id: str, ending: Ending, log_tail: str) -> bool:
        """Write the ending, trying again for as long as the lease may last."""
        give_up_at = time.monotonic() + self._limits.lease_ttl_seconds
        while True:
            try:
                return self._write_ending(record, job_id, ending, log_tail)
            except DATABASE_OUTAGE as error:
                if time.monotonic() > give_up_at:
                    raise LeaseLostError("the database did not answer") from error
                log.warning("database does not answer; the ending is not written yet")
                time.sleep(1.0)
