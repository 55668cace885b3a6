"""Takes the job whose turn it is, runs it in child processes, and writes how it ended. Imports no torch.

    claim -> order.json -> child (watched) -> conclusion -> scratch and private objects deleted, but for
    kept adapters

A job that this process cannot bring to an end (it is killed, it loses the lease or the database) stays
`running` until its lease runs out; the reaper in `workers.maintenance` then passes it on.
"""

from __future__ import annotations

import shutil
import threading
from contextlib import ExitStack
from pathlib import Path

import msgspec
import structlog

from service.db import Database
from service.jobs.lease import Claim
from service.jobs.metrics import read_points
from service.jobs.next_job import take_next
from service.jobs.results import ResultFile, store_results, validation_loss
from service.jobs.transitions import LeaseLostError
from service.models import Job
from service.quotas.limits import default_quota
from service.scheduling.workers import kind_from_settings
from service.settings import Settings
from service.storage import Storage, StorageUnavailableError
from service.tracing import Tracer
from workers import database_outage
from workers.bases.taking import RegistrationTaker
from workers.bells import ring_again
from workers.endings import Ending, Finished, OutOfMemory, StorageDown
from workers.job_processes import ChildCommand, JobProcesses, runner_command
from workers.measured import MeasuredRecord
from workers.messages import Noted, Published
from workers.metrics import LEASE_LOST, WorkerMetrics
from workers.order import Order, TokenCacheOrder
from workers.order_from_job import log_context, order_from_job
from workers.presence import Presence
from workers.result_page import result_page
from workers.scratch_space import ScratchSpace
from workers.storage_outage import StorageOutage
from workers.sweep import sweep_job
from workers.watch import DATABASE_OUTAGE, Limits

log = structlog.get_logger(__name__)


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
        metrics: WorkerMetrics | None = None,
        tracer: Tracer | None = None,
        presence: Presence | None = None,
    ) -> None:
        self._database = database
        self._storage = storage
        self._settings = settings
        self._limits = limits_from_settings(settings)
        self._owner = owner
        self._work_dir = work_dir
        self._shutdown = shutdown
        self._metrics = metrics or WorkerMetrics()
        self._tracer = tracer or Tracer()
        self._presence = presence
        self._outage = StorageOutage(storage, shutdown)
        self._scratch_space = ScratchSpace(work_dir, shutdown)
        self._registrations = RegistrationTaker(
            database,
            settings,
            self._limits,
            owner=owner,
            work_dir=work_dir,
            shutdown=shutdown,
            scratch_space=self._scratch_space,
            presence=presence,
        )
        self._processes = JobProcesses(
            storage,
            settings,
            self._limits,
            work_dir=work_dir,
            shutdown=shutdown,
            child_command=child_command,
            scratch_space=self._scratch_space,
        )

    def close(self) -> None:
        """Ends the process that keeps a base."""
        self._processes.close()

    def answer(self, rung_for: str, traceparent: str | None = None) -> None:
        """A doorbell rang, for the job of this id: do what is to be done, job after job, until nothing is
        left for this worker or it shuts down. `traceparent` came with the message."""
        if self._shutdown.is_set():
            ring_again(self._database, rung_for)
            return
        while not self._shutdown.is_set() and self.run_next(rung_for, traceparent):
            pass

    def run_next(self, rung_for: str = "", traceparent: str | None = None) -> bool:
        """Work on the job whose turn it is until it ended or is back in the queue; False if there is none.
        Doorbells ring more than once."""
        self._outage.wait()  # no job is taken that could not get at its files
        self._scratch_space.wait()
        if self._shutdown.is_set():
            return False
        if self._registrations.run_next():
            return True
        # Waited for: the bell that rang would be lost otherwise.
        claim = database_outage.until(self._shutdown, self._claim, what="for a claim")
        if claim is None:
            log.info("nothing to claim")
            return False
        job_id = claim.job_id
        # The bell's own span is in the trace of the job that it rang for, and of no other.
        parent = traceparent if traceparent is not None and job_id == rung_for else claim.traceparent
        names: dict[str, str | int] = {"autoclave.job.id": job_id, "autoclave.job.attempt": claim.attempt}
        with ExitStack() as stack:
            stack.enter_context(structlog.contextvars.bound_contextvars(**log_context(claim)))
            stack.enter_context(
                self._tracer.span("run job", kind="consumer", parent=parent, attributes=names)
            )
            if self._presence is not None:
                stack.enter_context(self._presence.working_on(job_id))
            self._run_claimed(claim)
        return True

    def _run_claimed(self, claim: Claim) -> None:
        job_id = claim.job_id
        log.info("claimed", stage=claim.stage.value)
        scratch = self._work_dir / f"{job_id}-{claim.fencing_number}"
        try:
            over = self._work(claim, scratch)
        except LeaseLostError as error:
            self._metrics.attempt_ended(LEASE_LOST)
            log.warning("lease lost, nothing written", error=str(error))
            return
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        log.info("job over" if over else "job handed back")
        if over:
            self._sweep(job_id)

    def _sweep(self, job_id: str) -> None:
        ttl_seconds = self._settings.kept_adapter_ttl_seconds
        try:
            sweep_job(
                self._database, self._storage, job_id, kept_ttl_seconds=ttl_seconds, now=self._database.now()
            )
        except (StorageUnavailableError, *DATABASE_OUTAGE) as error:
            # The maintenance loop does it later.
            log.warning("private objects not deleted yet", job_id=job_id, error=str(error))

    def _claim(self) -> Claim | None:
        return take_next(
            self._database,
            kind=kind_from_settings(self._settings),
            owner=self._owner,
            ttl_seconds=self._limits.lease_ttl_seconds,
            max_attempts=self._limits.max_attempts,
            now=self._database.now(),
            default_quota=default_quota(self._settings),
        )

    def _work(self, claim: Claim, scratch: Path) -> bool:
        """True if the job is over, False if it is queued again or paused."""
        order = self._order(claim, scratch)
        record = MeasuredRecord(
            self._database,
            claim,
            stage=claim.stage,
            trains=order.starts_from is None,
            metrics=self._metrics,
            tracer=self._tracer,
            model_id=order.model_id,
            lease_ttl_seconds=self._limits.lease_ttl_seconds,
            max_attempts=self._limits.max_attempts,
            adapter_ttl_seconds=self._settings.adapter_ttl_seconds,
            kept_checkpoints=self._settings.kept_checkpoints,
            storage=self._storage,
        )
        ending, tail = self._processes.run(order, record, self._presence)
        if isinstance(ending, OutOfMemory):
            record.end_child("out_of_memory")
            record.apply(Noted(text="Out of memory: trying again with half the tokens at once", level="warn"))
            # Read anew: the first child may have finished stages.
            order = msgspec.structs.replace(
                self._order(claim, scratch), model_id=order.model_id, micro_batch_divisor=2
            )
            ending, tail = self._processes.run(order, record, self._presence)
        self._outage.note(failed=isinstance(ending, StorageDown))
        return self._conclude(record, claim.job_id, ending, tail)

    def _order(self, claim: Claim, scratch: Path) -> Order:
        """Raises LeaseLostError where the database does not answer for as long as the lease lasts."""
        return database_outage.within_lease(
            lambda: self._read_order(claim, scratch),
            lease_ttl_seconds=self._limits.lease_ttl_seconds,
            what="for the order",
        )

    def _read_order(self, claim: Claim, scratch: Path) -> Order:
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
                num_processes=self._settings.worker_processes,
                token_cache=self._token_cache(),
                memory_bytes=self._settings.worker_memory_bytes,
            )

    def _token_cache(self) -> TokenCacheOrder | None:
        """Beside the scratch folders of the attempts, and removed with them all when this worker stops."""
        max_bytes = self._settings.token_cache_bytes
        folder = self._work_dir / "tokens"
        return TokenCacheOrder(folder=str(folder), max_bytes=max_bytes) if max_bytes else None

    def _wandb_folder(self, scratch: Path) -> Path:
        """Runs that nobody sent must outlive the job's scratch folder, for the operator to sync them."""
        offline = self._settings.wandb_mode_of_jobs == "offline"
        return Path(self._settings.work_dir) / "wandb" if offline else scratch

    def _write_ending(self, record: MeasuredRecord, job_id: str, ending: Ending, log_tail: str) -> bool:
        files: list[ResultFile] = []  # swept up later, should the job end in another way
        if isinstance(ending, Finished) and isinstance(ending.verdict, Published):
            report = ending.verdict.safety_report
            with self._database.snapshot() as session:
                points = read_points(session, job_id)
                job = session.get_one(Job, job_id)
                loss = validation_loss(job, report)
                page = result_page(session, job, ending.verdict)
            files = store_results(self._storage, points=points, report=report, valid_loss=loss, page=page)
        return record.conclude(ending, log_tail=log_tail, result_files=files)

    def _conclude(self, record: MeasuredRecord, job_id: str, ending: Ending, log_tail: str) -> bool:
        def write() -> bool:
            return self._write_ending(record, job_id, ending, log_tail)

        ttl_seconds = self._limits.lease_ttl_seconds
        try:
            return database_outage.within_lease(write, lease_ttl_seconds=ttl_seconds, what="for the ending")
        except StorageUnavailableError as error:
            # Only what a published job leaves beside its adapter goes to the storage here. The bytes of
            # the stage are stored, but without them it has to be done again.
            log.warning("storage does not answer; the job is handed back", error=str(error))
            self._outage.note(failed=True)
            ending = StorageDown()
            return database_outage.within_lease(write, lease_ttl_seconds=ttl_seconds, what="for the ending")
