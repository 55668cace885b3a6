"""Sends a job's doorbell to the queues of the workers that could run it."""

from __future__ import annotations

from celery import Celery

from service.db import Database
from service.scheduling.workers import bell_queues
from workers.celery_app import ring


class Bells:
    """`Maintenance` calls it for every message of the outbox."""

    def __init__(self, database: Database, app: Celery) -> None:
        self._database = database
        self._app = app

    def __call__(self, job_id: str) -> None:
        """Raises kombu's OperationalError."""
        with self._database.glance() as session:
            queues = bell_queues(session, job_id, now=self._database.now())
        for queue in queues:
            ring(self._app, job_id, queue=queue)
