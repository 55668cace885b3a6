"""A worker: hears the doorbell of its kind and supervises one job at a time. `python -m workers.worker`.

Celery's `threads` pool with one thread: the supervisor needs a long-lived thread of this process, and
never forks. SIGTERM, Ctrl-C and SIGHUP make it stop its child, hand the job back and exit.
What keeps it from starting is one line on stderr and exit status 2.
"""

from __future__ import annotations

import argparse
import logging
import os
import secrets
import shutil
import signal
import socket
import sys
import threading
from contextlib import ExitStack, nullcontext, suppress
from pathlib import Path
from typing import Any

import structlog
from celery import Celery, signals
from kombu.exceptions import OperationalError as BrokerError

from service import log as logging_setup
from service.scheduling.workers import kind_from_settings
from service.startup import StartError, open_database, open_storage, settings_from_environment
from service.tracing import tracer_to
from workers.announcing import Announcing
from workers.bells import Bells
from workers.celery_app import answer, make_celery, require_broker, ring
from workers.device import own_device
from workers.job_processes import ChildCommand, runner_command
from workers.maintenance import maintenance_from_settings
from workers.presence import Presence
from workers.scratch import own_folder
from workers.served_metrics import served_metrics
from workers.signing import SigningKey, SigningKeyError
from workers.supervisor import Supervisor

log = structlog.get_logger(__name__)


def require_signing_key(path: Path) -> None:
    """Raises StartError: better now than at the end of a job."""
    try:
        SigningKey(path)
    except SigningKeyError as error:
        raise StartError(f"SIGNING_KEY_FILE: {error}") from error


def make_own_folder(work_dir: Path) -> Path:
    """Raises StartError."""
    try:
        return own_folder(work_dir)
    except OSError as error:
        raise StartError(f"WORK_DIR: {work_dir}: {error.strerror or error}") from error


def run_worker(*, maintain: bool, child_command: ChildCommand = runner_command) -> int:
    """Until a signal says stop; the exit status. Raises StartError."""
    settings = settings_from_environment()
    logging_setup.configure(json=settings.log_json)
    with ExitStack() as stack:
        database = open_database(settings.database_url)
        stack.callback(database.close)
        storage = open_storage(settings.storage_url)
        if settings.signing_key_file is not None:
            require_signing_key(settings.signing_key_file)
        kind = kind_from_settings(settings)
        app = make_celery(settings.broker_url, queue=kind.queue_name)
        require_broker(app)
        work_dir = make_own_folder(settings.work_dir)
        stack.callback(shutil.rmtree, work_dir, ignore_errors=True)

        shutdown = threading.Event()
        host = socket.gethostname()
        owner = f"{host}:{os.getpid()}:{secrets.token_hex(4)}"
        metrics = served_metrics(settings, stack, work_dir=work_dir)
        tracer = tracer_to(settings.otel_exporter_otlp_endpoint, service="autoclave-worker")
        stack.callback(tracer.close)
        presence = Presence(
            database,
            own_device(),
            worker_id=owner,
            host=host,
            pid=os.getpid(),
            interval_seconds=settings.heartbeat_seconds,
            kind=kind,
            num_processes=settings.worker_processes,
            shutdown=shutdown,
        )
        supervisor = Supervisor(
            database,
            storage,
            settings,
            owner=owner,
            work_dir=work_dir,
            shutdown=shutdown,
            child_command=child_command,
            metrics=metrics,
            tracer=tracer,
            presence=presence,
        )
        stack.callback(supervisor.close)
        answer(app, supervisor.answer)
        loop = maintenance_from_settings(
            database, storage, Bells(database, app), settings, metrics=metrics, tracer=tracer
        )
        with Announcing(database, kind), presence, loop if maintain else nullcontext():
            return serve(app, shutdown, events=settings.worker_events)


def serve(app: Celery, shutdown: threading.Event, *, events: bool = False) -> int:
    """Answer messages until a signal says stop; the exit status. `events`: tell listeners such as Flower."""

    # Celery keeps weak references to receivers: the names keep them alive until we return.
    def on_shutting_down(**_: Any) -> None:
        shutdown.set()

    def on_ready(**_: Any) -> None:
        # Celery would start itself anew on SIGHUP without telling the supervisor, and exits with 1 on
        # Ctrl-C. One way to stop is enough.
        for number in (signal.SIGHUP, signal.SIGINT):
            signal.signal(number, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
        log.info("worker ready", queue=app.conf.task_default_queue)
        # For what waited while nobody of this kind was there. Lost with the broker, it is rung for later.
        with suppress(BrokerError):
            ring(app, "", queue=app.conf.task_default_queue)

    def on_setup_logging(**_: Any) -> None:
        """A receiver, of whatever kind, keeps Celery from replacing our logging."""

    signals.setup_logging.connect(on_setup_logging)
    logging.getLogger("celery").setLevel(logging.WARNING)
    signals.worker_shutting_down.connect(on_shutting_down)
    signals.worker_ready.connect(on_ready)
    worker = app.Worker(
        pool="threads",
        concurrency=1,
        hostname=f"autoclave-{os.getpid()}@{socket.gethostname()}",
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=not events,
        task_events=events,
        quiet=True,
    )
    worker.start()
    return int(worker.exitcode or 0)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m workers.worker", description="Run jobs.")
    parser.add_argument(
        "--without-maintenance",
        action="store_true",
        help="leave the outbox and expired leases to another process",
    )
    arguments = parser.parse_args()
    try:
        return run_worker(maintain=not arguments.without_maintenance)
    except StartError as error:
        print(f"autoclave worker: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
