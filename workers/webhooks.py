"""Sends what webhooks are told: a loop beside the maintenance loop, each delivery in a thread of its own.

A slow receiver holds up neither the queue's steps nor, for longer than one attempt, other receivers. Any
number of processes may run it (`service.webhooks.delivery`). Nothing here logs a URL, a body or a secret.
"""

from __future__ import annotations

import random
import ssl
import threading
import time
from types import TracebackType
from typing import Self

import structlog

from service.db import Database
from service.settings import Settings
from service.startup import StartError
from service.webhooks import delivery
from service.webhooks.delivery import Claim, Outcome
from service.webhooks.egress import (
    Address,
    EgressError,
    EgressPolicy,
    Resolve,
    Target,
    find_addresses,
    parse_url,
    resolve_by_system,
)
from service.webhooks.messages import body_of, headers_of
from workers.metrics import WorkerMetrics
from workers.pinned_http import PostError, post, tls_context

log = structlog.get_logger(__name__)

MAX_IN_FLIGHT = 16
STOP_SECONDS = 5.0
"""How long attempts under way may go on when the process stops; the rest is sent again by another."""
MAX_BACKOFF_SECONDS = 30.0
LEASE_MARGIN_SECONDS = 30.0
"""From the end of an attempt to the moment when another process would send the same again."""


class WebhookSender:
    """Makes one attempt. `timeout_seconds` covers all of it, also looking up the name."""

    def __init__(
        self,
        policy: EgressPolicy,
        *,
        timeout_seconds: float,
        tls: ssl.SSLContext,
        resolve: Resolve = resolve_by_system,
    ) -> None:
        self.timeout_seconds = timeout_seconds
        self._policy = policy
        self._tls = tls
        self._resolve = resolve

    def attempt(self, claim: Claim) -> Outcome:
        now, started = time.time(), time.monotonic()
        deadline = started + self.timeout_seconds
        body = body_of(
            event_id=claim.event_id, type=claim.type, created_at=claim.created_at, job_id=claim.job_id
        )
        headers = headers_of(body, event_id=claim.event_id, signing_secrets=claim.signing_secrets, now=now)
        status, error = None, None
        try:
            # Under today's policy, and looked up anew: both may have changed since the last attempt.
            target = parse_url(claim.url, self._policy)
            addresses = self._find_addresses(target, deadline)
            status = post(target, addresses, body=body, headers=headers, tls=self._tls, deadline=deadline)
        except (EgressError, PostError) as failure:
            error = failure.kind
        except Exception as failure:
            # Its text might hold the URL.
            log.error("webhook attempt broke", delivery_id=claim.delivery_id, error=type(failure).__name__)
            error = "internal_error"
        milliseconds = round((time.monotonic() - started) * 1000)
        return Outcome(now, milliseconds, status, error)

    def _find_addresses(self, target: Target, deadline: float) -> list[Address]:
        """In a thread, because the system's resolver knows no timeout. One that hangs is left behind; it ends
        by itself when the resolver gives up."""
        result: list[list[Address] | Exception] = []

        def find() -> None:
            try:
                result.append(find_addresses(target, self._policy, self._resolve))
            except Exception as error:
                result.append(error)

        thread = threading.Thread(target=find, name="webhook-dns", daemon=True)
        thread.start()
        thread.join(max(0.0, deadline - time.monotonic()))
        if not result:
            raise EgressError("dns_failed", "the name servers do not answer in time")
        if isinstance(result[0], Exception):
            raise result[0]
        return result[0]


class WebhookLoop:
    """A context manager: sends what is due while its block runs. A failure is logged when it begins and when
    it is over; it never ends the loop."""

    def __init__(
        self,
        database: Database,
        sender: WebhookSender,
        *,
        interval_seconds: float,
        metrics: WorkerMetrics | None = None,
    ) -> None:
        self._database = database
        self._sender = sender
        self._interval_seconds = interval_seconds
        self._metrics = metrics or WorkerMetrics()
        self._stopping = threading.Event()
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="webhooks", daemon=True)
        self._in_flight: set[threading.Thread] = set()
        self._lock = threading.Lock()
        self._failures = 0

    def _loop(self) -> None:
        while not self._stopping.is_set():
            try:
                self.dispatch()
            except Exception as error:
                if not self._failures:
                    log.warning("webhooks cannot be sent", error=str(error), exc_info=True)
                self._failures += 1
            else:
                if self._failures:
                    log.info("webhooks can be sent again")
                self._failures = 0
            longest = max(self._interval_seconds, MAX_BACKOFF_SECONDS)
            pause = min(longest, self._interval_seconds * 2.0 ** min(self._failures, 16))
            # An attempt that ends wakes it: its place can be taken.
            self._wake.wait(pause * random.uniform(0.75, 1.25))  # noqa: S311
            self._wake.clear()

    def dispatch(self) -> int:
        """Begin what is due and has a place; how many attempts."""
        with self._lock:
            places = MAX_IN_FLIGHT - len(self._in_flight)
        if places <= 0:
            return 0
        with self._database.snapshot() as session:
            due = delivery.due(session, limit=places, now=self._database.now())
        num_begun = 0
        lease_seconds = self._sender.timeout_seconds + LEASE_MARGIN_SECONDS
        for delivery_id in due:
            if self._stopping.is_set():
                break
            # A transaction each: with several locks in one, two processes could wait for each other.
            with self._database.transaction() as session:
                claim = delivery.claim(
                    session, delivery_id, lease_seconds=lease_seconds, now=self._database.now()
                )
            if claim is None:
                continue
            thread = threading.Thread(target=self._deliver, args=(claim,), name="webhook", daemon=True)
            with self._lock:
                self._in_flight.add(thread)
            thread.start()
            num_begun += 1
        return num_begun

    def _deliver(self, claim: Claim) -> None:
        try:
            outcome = self._sender.attempt(claim)
            self._metrics.webhook_attempted(status=outcome.status, error=outcome.error)
            with self._database.transaction() as session:
                delivery.record_outcome(session, claim, outcome, now=self._database.now())
            if not outcome.succeeded:
                log.info(
                    "webhook attempt failed",
                    webhook_id=claim.webhook_id,
                    delivery_id=claim.delivery_id,
                    status=outcome.status,
                    error=outcome.error,
                )
        except Exception as error:
            # The lease passes, and the event is sent again.
            log.warning(
                "webhook outcome lost", delivery_id=claim.delivery_id, error=str(error), exc_info=True
            )
        finally:
            with self._lock:
                self._in_flight.discard(threading.current_thread())
            self._wake.set()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        self._wake.set()
        self._thread.join(timeout=60)
        deadline = time.monotonic() + STOP_SECONDS
        with self._lock:
            threads = list(self._in_flight)
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))


def webhook_loop_from_settings(
    database: Database, settings: Settings, metrics: WorkerMetrics | None = None
) -> WebhookLoop:
    """Raises StartError for a file of authorities that cannot be read."""
    policy = EgressPolicy.of(ports=settings.webhook_ports, private=settings.webhook_allow_private)
    ca_file = settings.webhook_ca_file
    try:
        tls = tls_context(None if ca_file is None else str(ca_file))
    except OSError as error:
        raise StartError(f"WEBHOOK_CA_FILE: {ca_file} cannot be used: {error}") from error
    sender = WebhookSender(policy, timeout_seconds=settings.webhook_timeout_seconds, tls=tls)
    return WebhookLoop(
        database, sender, interval_seconds=settings.maintenance_interval_seconds, metrics=metrics
    )
