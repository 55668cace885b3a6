"""What keeps the queue honest: sends the outbox, ends expired leases, rings again, sweeps up.

Any number of processes may run it: each step is guarded in the database, and a message or a deletion
too many does no harm. Nothing here holds a database lock while it waits for the broker or the storage.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from types import TracebackType
from typing import Self

import structlog
from sqlalchemy import update

from service import outbox, repeats
from service.bases import lease as base_lease
from service.db import Database
from service.fleet import presence
from service.jobs import attempts, lease
from service.jobs.states import Stage, Status
from service.jobs.transitions import IllegalTransitionError, fail
from service.jobs.unheard import silent
from service.models import Job, OutboxMessage
from service.settings import KEPT_ADAPTER_TTL_SECONDS, Settings
from service.storage import Storage
from service.tracing import Tracer
from service.webhooks import delivery
from workers.metrics import WorkerMetrics, reap_reason
from workers.sweep import sweep
from workers.webhooks import webhook_loop_from_settings

log = structlog.get_logger(__name__)

SENT_KEPT_SECONDS = 24 * 3600.0
"""How long a sent message stays in the outbox, to be looked at when something went wrong."""
DELIVERIES_KEPT_SECONDS = 30 * 24 * 3600.0
"""How long the log of a webhook holds what was delivered or given up."""
WORKERS_KEPT_SECONDS = 3600.0
"""How long a worker that is gone, or was lost, is still shown."""
SWEEP_SECONDS = 300.0
MAX_BACKOFF_SECONDS = 30.0


class Maintenance:
    """`send` delivers one job id to the broker, or raises."""

    def __init__(
        self,
        database: Database,
        storage: Storage,
        send: Callable[[str], None],
        *,
        max_attempts: int,
        resend_after_seconds: float,
        kept_adapter_ttl_seconds: float = KEPT_ADAPTER_TTL_SECONDS,
        metrics: WorkerMetrics | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        self._kept_ttl_seconds = kept_adapter_ttl_seconds
        self._database = database
        self._storage = storage
        self._send = send
        self._max_attempts = max_attempts
        self._resend_after_seconds = resend_after_seconds
        self._metrics = metrics or WorkerMetrics()
        self._tracer = tracer or Tracer()

    def now(self) -> float:
        """What time a step should take it for: leases were granted by the database's clock."""
        return self._database.now()

    def publish(self, now: float) -> int:
        """Send what waits in the outbox; the number sent. Raises what `send` raises, after marking what
        was sent before."""
        sent: list[int] = []
        try:
            # On PostgreSQL other publishers skip these rows; SQLite is not locked, messages may double.
            with self._database.snapshot() as session:
                for message in outbox.pending(session):
                    self._send_one(message)
                    sent.append(message.sequence)
        finally:
            if sent:
                with self._database.transaction() as session:
                    session.execute(
                        update(OutboxMessage).where(OutboxMessage.sequence.in_(sent)).values(sent_at=now)
                    )
        return len(sent)

    def _send_one(self, message: OutboxMessage) -> None:
        names = {"autoclave.job.id": message.job_id}
        with self._tracer.span("ring", kind="producer", parent=message.traceparent, attributes=names):
            self._send(message.job_id)

    def reap(self, now: float) -> int:
        """End the leases of silent workers; how many."""
        with self._database.snapshot() as session:
            if not lease.expired(session, now=now, limit=1):
                return 0
        with self._database.transaction() as session:
            jobs = lease.expired(session, now=now)
            # Before they are changed.
            reasons = [reap_reason(job, max_attempts=self._max_attempts) for job in jobs]
            for job in jobs:
                log.warning("lease expired", job_id=job.id, owner=job.lease_owner, attempt=job.attempt_count)
                lease.reap(session, job, max_attempts=self._max_attempts, now=now)
        for reason in reasons:
            self._metrics.reaped(reason)
        return len(jobs)

    def ring_again(self, now: float) -> int:
        """Ring for queued jobs whose doorbell brought nobody; how many. One that has no attempt left
        (the limit was lowered while it waited) fails: nobody could ever claim it."""
        before = now - self._resend_after_seconds
        with self._database.snapshot() as session:
            if not silent(session, rung_before=before, limit=1):
                return 0
        spent: list[Job] = []
        with self._database.transaction() as session:
            job_ids = silent(session, rung_before=before)
            for job_id in job_ids:
                job = session.get_one(Job, job_id)
                if job.attempt_count < self._max_attempts:
                    outbox.enqueue(session, job_id, now=now)
                    continue
                spent.append(job)
        for job in spent:  # a transaction each: it locks the job, then its project's queue
            text = f"its worker disappeared {job.attempt_count} times"
            with suppress(IllegalTransitionError):
                with self._database.transaction() as session:
                    fail(
                        session,
                        job.id,
                        Stage(job.stage),
                        code="worker_lost",
                        message=text,
                        param=None,
                        now=now,
                        only_from=Status.QUEUED,
                    )
                self._metrics.reaped("attempts_exhausted")
        return len(job_ids)

    def reap_bases(self, now: float) -> int:
        """End the leases of silent workers on registrations of bases; how many."""
        with self._database.snapshot() as session:
            if not base_lease.expired(session, now=now):
                return 0
        with self._database.transaction() as session:
            return base_lease.reap(session, max_attempts=self._max_attempts, now=now)

    def ring_for_bases(self, now: float) -> int:
        """Registrations have no outbox: when one was rung for last stands in its row."""
        with self._database.snapshot() as session:
            waiting = base_lease.to_ring(session, rung_before=now - self._resend_after_seconds)
        for registration_id in waiting:
            self._send(registration_id)
            with self._database.transaction() as session:
                base_lease.rung(session, registration_id, now=now)
        return len(waiting)

    def tidy(self, now: float) -> None:
        with self._database.transaction() as session:
            outbox.forget_sent(session, before=now - SENT_KEPT_SECONDS)
            repeats.forget_expired(session, now=now)
            delivery.forget_ended(session, created_before=now - DELIVERIES_KEPT_SECONDS)
            presence.forget(session, seen_before=now - WORKERS_KEPT_SECONDS)
            attempts.forget_logs(session, now=now)
        sweep(self._database, self._storage, now=now, kept_ttl_seconds=self._kept_ttl_seconds)


class MaintenanceLoop:
    """A context manager: a thread that does all of it, again and again, while its block runs.

    A failure is logged when it begins and when it is over, and the next round waits longer; it never
    ends the loop. `beside` runs as long: what waits for others and must not hold up a round.
    """

    def __init__(
        self,
        maintenance: Maintenance,
        *,
        interval_seconds: float,
        beside: Sequence[AbstractContextManager[object]] = (),
    ) -> None:
        self._maintenance = maintenance
        self._beside = beside
        self._stack = ExitStack()
        self._interval_seconds = interval_seconds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="maintenance", daemon=True)
        self._tidy_at = time.monotonic()
        self._failing: dict[str, int] = {}

    def _loop(self) -> None:
        while not self._stop.wait(self._pause_seconds()):
            self._round()

    def _pause_seconds(self) -> float:
        failures = max(self._failing.values(), default=0)
        longest = max(self._interval_seconds, MAX_BACKOFF_SECONDS)
        pause = min(longest, self._interval_seconds * 2.0 ** min(failures, 16))
        return pause * random.uniform(0.75, 1.25)  # noqa: S311 - spreads loops that started together

    def _round(self) -> None:
        maintenance = self._maintenance
        # Reaping rings, so it goes before publishing.
        self._attempt("reap", maintenance.reap)
        self._attempt("ring again", maintenance.ring_again)
        self._attempt("publish", maintenance.publish)
        self._attempt("reap bases", maintenance.reap_bases)
        self._attempt("ring for bases", maintenance.ring_for_bases)
        if time.monotonic() >= self._tidy_at:
            self._attempt("tidy", maintenance.tidy)
            self._tidy_at = time.monotonic() + SWEEP_SECONDS

    def _attempt(self, name: str, step: Callable[[float], object]) -> None:
        try:
            step(self._maintenance.now())
        except Exception as error:
            # Whatever it is, the other steps and later rounds must go on.
            if name not in self._failing:
                log.warning("maintenance step fails", step=name, error=str(error), exc_info=True)
            self._failing[name] = self._failing.get(name, 0) + 1
        else:
            if self._failing.pop(name, None):
                log.info("maintenance step works again", step=name)

    def __enter__(self) -> Self:
        for loop in self._beside:
            self._stack.enter_context(loop)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._stack.close()
        self._thread.join(timeout=60)


def maintenance_from_settings(
    database: Database,
    storage: Storage,
    send: Callable[[str], None],
    settings: Settings,
    *,
    metrics: WorkerMetrics | None = None,
    tracer: Tracer | None = None,
) -> MaintenanceLoop:
    """Raises StartError."""
    metrics = metrics or WorkerMetrics()
    maintenance = Maintenance(
        database,
        storage,
        send,
        max_attempts=settings.max_attempts,
        resend_after_seconds=settings.resend_after_seconds,
        kept_adapter_ttl_seconds=settings.kept_adapter_ttl_seconds,
        metrics=metrics,
        tracer=tracer,
    )
    return MaintenanceLoop(
        maintenance,
        interval_seconds=settings.maintenance_interval_seconds,
        beside=[webhook_loop_from_settings(database, settings, metrics)],
    )
