"""The maintenance loop as a process of its own, for a fleet whose workers come and go.

    autoclave maintenance

Any number may run. SIGTERM, Ctrl-C and SIGHUP end it. What keeps it from starting is one line on stderr and
exit status 2.
"""

from __future__ import annotations

import signal
import threading
from contextlib import ExitStack

import structlog

from service import log as logging_setup
from service.startup import open_database, open_storage, settings_from_environment
from service.tracing import tracer_to
from workers.bells import Bells
from workers.celery_app import make_celery, require_broker
from workers.maintenance import maintenance_from_settings
from workers.served_metrics import served_metrics

log = structlog.get_logger(__name__)


def run_maintenance() -> None:
    """Until a signal says stop. Raises StartError."""
    settings = settings_from_environment()
    logging_setup.configure(json=settings.log_json)
    with ExitStack() as stack:
        database = open_database(settings.database_url)
        stack.callback(database.close)
        storage = open_storage(settings.storage_url)
        app = make_celery(settings.broker_url)
        stack.callback(app.close)
        require_broker(app)
        stop = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *_: stop.set())
        metrics = served_metrics(settings, stack)
        tracer = tracer_to(settings.otel_exporter_otlp_endpoint, service="autoclave-maintenance")
        stack.callback(tracer.close)
        with maintenance_from_settings(
            database, storage, Bells(database, app), settings, metrics=metrics, tracer=tracer
        ):
            log.info("maintenance ready")
            stop.wait()
