"""The doorbell: a Celery application with one task, whose message is a job id. JSON only, no results.

Celery is the doorbell (docs/decisions/0003): messages are acknowledged when they arrive, and neither
redelivery nor revocation nor time limits of Celery are relied on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from celery import Celery
from kombu.exceptions import OperationalError as BrokerError

from service.scheduling.workers import DEFAULT_QUEUE
from service.startup import StartError
from service.tracing import current_traceparent

TASK_NAME = "autoclave.run_job"
BROKERS = frozenset({"redis", "rediss", "redis+socket"})

# A broker that died must be noticed: by a silent TCP peer, and before a message is sent into the void.
_TRANSPORT_OPTIONS = {
    "socket_timeout": 30.0,
    "socket_connect_timeout": 5.0,
    "socket_keepalive": True,
    "health_check_interval": 25,
}


def make_celery(broker_url: str, *, queue: str = DEFAULT_QUEUE) -> Celery:
    """`queue` is what a worker of this application listens to."""
    app = Celery("autoclave", broker=broker_url, set_as_current=False)
    app.conf.update(
        task_serializer="json",
        accept_content=["json"],
        task_ignore_result=True,
        task_default_queue=queue,
        task_acks_late=False,
        worker_prefetch_multiplier=1,
        # A busy worker must not hold a message that an idle one could answer.
        worker_disable_prefetch=True,
        worker_hijack_root_logger=False,
        worker_enable_remote_control=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options=_TRANSPORT_OPTIONS,
    )
    return app


def require_broker(app: Celery) -> None:
    """Raises StartError if no connection can be made. Losing it later is survived."""
    scheme = urlsplit(str(app.conf.broker_url)).scheme
    if scheme not in BROKERS:
        raise StartError(
            f"BROKER_URL: {scheme!r} is not supported; use redis://, rediss:// or redis+socket://"
        )
    try:
        with app.connection_for_write() as connection:
            connection.ensure_connection(max_retries=2, interval_start=0.5)
    except (BrokerError, OSError, ValueError, KeyError) as error:
        raise StartError(f"BROKER_URL: cannot connect: {error}") from error


def ring(app: Celery, job_id: str, *, queue: str = DEFAULT_QUEUE) -> None:
    """Send one message, or raise kombu's OperationalError at once: the outbox keeps what was not sent."""
    traceparent = current_traceparent()
    headers = {} if traceparent is None else {"traceparent": traceparent}
    app.send_task(TASK_NAME, args=[job_id], queue=queue, headers=headers, retry=False)


def answer(app: Celery, hear: Callable[[str, str | None], None]) -> None:
    """Have a worker of `app` call `hear(job_id, traceparent)` for every message."""

    def task(self: Any, job_id: str) -> None:
        # A header of its own: what an older version of the service sends or hears stays the same.
        hear(job_id, (self.request.headers or {}).get("traceparent"))

    app.task(name=TASK_NAME, bind=True)(task)
