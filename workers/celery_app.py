"""The doorbell: a Celery application with one task, whose message is a job id. JSON only, no results.

Celery is the doorbell (docs/decisions/0003): messages are acknowledged when they arrive, and neither
redelivery nor revocation nor time limits of Celery are relied on.
"""

from __future__ import annotations

from collections.abc import Callable

from celery import Celery

from service.scheduling.workers import DEFAULT_QUEUE

TASK_NAME = "autoclave.run_job"

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


def ring(app: Celery, job_id: str, *, queue: str = DEFAULT_QUEUE) -> None:
    """Send one message, or raise kombu's OperationalError at once: the outbox keeps what was not sent."""
    app.send_task(TASK_NAME, args=[job_id], queue=queue, retry=False)


def answer(app: Celery, hear: Callable[[str], None]) -> None:
    """Have a worker of `app` call `hear(job_id)` for every message."""
    app.task(name=TASK_NAME)(hear)
