"""What a supervisor writes about its job. Every method is one transaction under the fencing number.

All of them raise LeaseLostError once another worker owns the job or it was ended; nothing is written then.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import structlog
from sqlalchemy import select
from sqlalchemy.orm import Session

from service.adapters.release import release
from service.checkpoints.keeping import keep
from service.db import Database
from service.jobs import attempts, lease
from service.jobs.estimates import later_stages_seconds
from service.jobs.events import add_event
from service.jobs.lease import Claim, StopRequest
from service.jobs.metrics import add_steps
from service.jobs.results import ResultFile
from service.jobs.states import Stage, Status
from service.jobs.transitions import LeaseLostError, fail, move
from service.models import Job
from service.settings import Settings
from service.storage import Storage, StorageUnavailableError
from workers.endings import (
    Cancelled,
    DeadlineExceeded,
    Died,
    Drained,
    Ending,
    Finished,
    OutOfMemory,
    Paused,
    ScratchFull,
    StorageDown,
    TooLarge,
    exit_of,
)
from workers.messages import (
    AdapterKept,
    AnyMessage,
    Checkpointed,
    Failed,
    MemoryEstimated,
    MetricsMeasured,
    Noted,
    ProgressMade,
    Published,
    StageFinished,
    StepsMeasured,
)

log = structlog.get_logger(__name__)

_KEPT_CHECKPOINTS: int = Settings.model_fields["kept_checkpoints"].default


class JobRecord:
    """`storage` is where the bytes of checkpoints beyond `kept_checkpoints` are deleted; without it they
    stay until the job is over."""

    def __init__(
        self,
        database: Database,
        claim: Claim,
        *,
        model_id: str,
        lease_ttl_seconds: float,
        max_attempts: int,
        adapter_ttl_seconds: float | None = None,
        kept_checkpoints: int = _KEPT_CHECKPOINTS,
        storage: Storage | None = None,
    ) -> None:
        self._database = database
        self._claim = claim
        self._model_id = model_id
        self._ttl_seconds = lease_ttl_seconds
        self._max_attempts = max_attempts
        self._adapter_ttl_seconds = adapter_ttl_seconds
        self._kept_checkpoints = kept_checkpoints
        self._storage = storage
        self._later_seconds: dict[str, float | None] = {}
        self.concluded_as: Ending | None = None
        """What `conclude` wrote: a cancel that came in time wins."""

    def heartbeat(self, progress: ProgressMade | None = None) -> StopRequest | None:
        """Extend the lease; what the job's owner asked for."""
        now = self._database.now()
        with self._database.transaction() as session:
            asked = lease.heartbeat(session, self._claim, ttl_seconds=self._ttl_seconds, now=now)
            if progress is not None:
                figures = {field: getattr(progress, field) for field in progress.__struct_fields__}
                estimate = self._estimated_finish_at(session, progress.seconds_remaining, now=now)
                lease.write(
                    session, self._claim, progress=figures, progress_at=now, estimated_finish_at=estimate
                )
        return asked

    def asked(self) -> StopRequest | None:
        """What the job's owner asked for, without a write. Raises LeaseLostError."""
        with self._database.glance() as session:
            return lease.asked(session, self._claim)

    def _estimated_finish_at(
        self, session: Session, seconds_remaining: float | None, *, now: float
    ) -> float | None:
        """Of the whole job: what is left of this stage, and how long the later ones took others."""
        if seconds_remaining is None:
            return None
        stage = session.scalars(select(Job.stage).where(Job.id == self._claim.job_id)).one()
        if stage not in self._later_seconds:
            self._later_seconds[stage] = later_stages_seconds(session, self._claim.job_id)
        later = self._later_seconds[stage]
        return None if later is None else now + seconds_remaining + later

    def apply(self, message: AnyMessage) -> None:
        """Write what the child said. Verdicts wait for `conclude`: the process must be gone first."""
        now = self._database.now()
        unneeded: list[str] = []
        with self._database.transaction() as session:
            # An event alone carries no number; renewing the lease does.
            lease.heartbeat(session, self._claim, ttl_seconds=self._ttl_seconds, now=now)
            match message:
                case Noted(text=text, level=level, data=data):
                    add_event(session, self._claim.job_id, text, now=now, level=level, data=data)
                case MetricsMeasured(step=step, total_steps=total, train_loss=loss, valid_loss=valid):
                    text = f"Step {step}/{total}: training loss={loss:.4f}"
                    if valid is not None:
                        text += f", validation loss={valid:.4f}"
                    figures = {name: getattr(message, name) for name in message.__struct_fields__}
                    data = {name: value for name, value in figures.items() if value is not None}
                    add_event(session, self._claim.job_id, text, now=now, type="metrics", data=data)
                case StepsMeasured():
                    add_steps(
                        session,
                        self._claim.job_id,
                        first_step=message.first_step,
                        train_loss=message.train_loss,
                        learning_rate=message.learning_rate,
                        tokens_per_second=message.tokens_per_second,
                        valid_loss=message.valid_loss,
                        train_mean_token_accuracy=message.train_mean_token_accuracy,
                        valid_mean_token_accuracy=message.valid_mean_token_accuracy,
                    )
                case Checkpointed(prefix=prefix, step=step):
                    before = session.scalars(select(Job.checkpoint).where(Job.id == self._claim.job_id)).one()
                    lease.write(session, self._claim, checkpoint={"prefix": prefix, "step": step})
                    if before is not None and before["prefix"] != prefix:
                        unneeded = [before["prefix"]]  # nobody goes on from it any more
                case MemoryEstimated(num_bytes=needed):
                    lease.write(session, self._claim, needed_memory_bytes=needed)
                case AdapterKept():
                    unneeded = keep(
                        session,
                        self._claim.job_id,
                        step=message.step,
                        model_id=self._model_id,
                        metrics=message.metrics,
                        prefix=message.prefix,
                        adapter_sha256=message.adapter_sha256,
                        figures=message.figures,
                        num_kept=self._kept_checkpoints,
                        now=now,
                    )
                case StageFinished(stage=stage, output=output, safety_report=report):
                    columns = {k: output[k] for k in ("trained_tokens",) if k in output}
                    if report is not None:
                        columns["safety_report"] = report
                    lease.finish_stage(session, self._claim, stage, output=output, now=now, **columns)
                case _:
                    raise AssertionError(f"{type(message).__name__} is not applied on arrival")
        self._delete(unneeded)

    def _delete(self, prefixes: list[str]) -> None:
        if self._storage is None:
            return
        try:
            for prefix in prefixes:
                self._storage.delete_prefix(prefix)
        except StorageUnavailableError as error:
            # No reason to end a job: what is left goes when it is over.
            log.warning("old checkpoints not deleted", job_id=self._claim.job_id, error=str(error))

    def conclude(self, ending: Ending, *, log_tail: str, result_files: Sequence[ResultFile] = ()) -> bool:
        """Write how the attempt ended; True if the job is over with that, False if it waits again."""
        now = self._database.now()
        claim = self._claim
        with self._database.transaction() as session:
            # Locked: a cancel that arrives now must come either before this decision or too late.
            job = session.scalars(select(Job).where(Job.id == claim.job_id).with_for_update()).one()
            if job.fencing_number != claim.fencing_number or job.status != Status.RUNNING.value:
                raise LeaseLostError(f"{claim.job_id} is no longer owned under {claim.fencing_number}")
            stage = Stage(job.stage)
            if job.cancel_requested_at is not None:
                ending = Cancelled()
            self.concluded_as = ending
            attempts.end(
                session,
                claim.job_id,
                claim.fencing_number,
                **exit_of(ending),
                stage=stage,
                log_tail=log_tail,
                now=now,
            )
            match ending:
                case Cancelled():
                    move(
                        session,
                        claim.job_id,
                        (Status.CANCELLED, stage),
                        message="The job was cancelled",
                        now=now,
                        fencing_number=claim.fencing_number,
                        only_from=Status.RUNNING,
                        values={"progress": None},
                    )
                case Finished(verdict=Published() as published):
                    release(
                        session,
                        claim,
                        model_id=self._model_id,
                        storage_key=published.storage_key,
                        num_bytes=published.num_bytes,
                        sha256=published.sha256,
                        safety_report=published.safety_report,
                        now=now,
                        result_files=result_files,
                        files=published.files,
                        signing_public_key=published.signing_public_key,
                        default_ttl_seconds=self._adapter_ttl_seconds,
                    )
                case Finished(verdict=Failed() as failed):
                    self._fail(session, stage, failed, log_tail=log_tail, now=now)
                case DeadlineExceeded():
                    text = f"stage {stage.value} took longer than this server allows"
                    verdict = Failed(code="deadline_exceeded", message=text)
                    self._fail(session, stage, verdict, log_tail=log_tail, now=now)
                case OutOfMemory():
                    text = (
                        f"stage {stage.value} ran out of accelerator memory twice, the second time with half "
                        "the tokens at once. Use shorter examples, a lower rank or fewer target modules."
                    )
                    verdict = Failed(code="out_of_memory", message=text)
                    self._fail(session, stage, verdict, log_tail=log_tail, now=now)
                # Kept paused by `hand_back`; or queued, if it was resumed while it stopped.
                case Paused() | Drained() | TooLarge() | ScratchFull():
                    reason = _RETURNED[type(ending)]
                    lease.hand_back(
                        session, claim, reason=reason, now=now, count_attempt=False, progress=None
                    )
                    return False
                case StorageDown():
                    text = "the storage did not answer"
                    lease.hand_back(session, claim, reason=text, now=now, count_attempt=False, progress=None)
                    return False
                case Died():
                    if claim.attempt < self._max_attempts:
                        lease.hand_back(
                            session, claim, reason=str(ending), now=now, progress=None, log_tail=log_tail
                        )
                        return False
                    text = f"{ending}, in stage {stage.value}, in the last of {claim.attempt} attempts"
                    verdict = Failed(code=ending.code, message=text)
                    self._fail(session, stage, verdict, log_tail=log_tail, now=now)
        return True

    def _fail(self, session: Session, stage: Stage, failed: Failed, *, log_tail: str, now: float) -> None:
        values: dict[str, Any] = {"progress": None, "log_tail": log_tail}
        if failed.safety_report is not None:
            values["safety_report"] = failed.safety_report
        fail(
            session,
            self._claim.job_id,
            stage,
            code=failed.code,
            message=failed.message,
            param=failed.param,
            now=now,
            fencing_number=self._claim.fencing_number,
            values=values,
        )


_RETURNED: dict[type[Ending], str] = {
    Paused: "it was resumed",
    Drained: "its worker is shutting down",
    TooLarge: "it needs a worker with more memory",
    ScratchFull: "the disk of its worker is full",
}
