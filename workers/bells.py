"""Sends a job's doorbell to the queues of the workers that could run it, and has one sent anew."""

from __future__ import annotations

import structlog
from celery import Celery
from redis.exceptions import RedisError
from sqlalchemy import select

from service import outbox
from service.bases import doorbells
from service.bases import lease as base_lease
from service.broker import Waiting
from service.db import Database
from service.jobs.states import Status
from service.models import Job
from service.scheduling.workers import bell_queues
from workers.celery_app import ring

log = structlog.get_logger(__name__)

MOST_WAITING = 1000
"""Bells in one queue. Any of them wakes a worker, which goes on until no job is left, so more would wake
nobody else; and while every worker is busy, each job that waits is rung for again and again."""


class Bells:
    """`Maintenance` calls it for every message of the outbox."""

    def __init__(self, database: Database, app: Celery) -> None:
        self._database = database
        self._app = app
        self._waiting = Waiting(app.conf.broker_url) if app.conf.broker_url else None

    def __call__(self, job_id: str) -> None:
        """Raises kombu's OperationalError."""
        with self._database.glance() as session:
            where = doorbells.bell_queues if doorbells.is_for_a_base(job_id) else bell_queues
            queues = where(session, job_id, now=self._database.now())
        for queue in queues:
            if self._num_waiting(queue) >= MOST_WAITING:
                log.info("enough bells wait", queue=queue, job_id=job_id)
            else:
                ring(self._app, job_id, queue=queue)

    def _num_waiting(self, queue: str) -> int:
        """0 where it cannot be told: a bell too many does no harm."""
        try:
            return 0 if self._waiting is None else self._waiting.count(queue)
        except (RedisError, OSError):
            return 0


def ring_again(database: Database, job_id: str) -> None:
    """For a worker that heard the doorbell but will not answer: another one should."""
    with database.transaction() as session:
        queued = session.scalar(select(Job.status).where(Job.id == job_id)) == Status.QUEUED.value
        if queued:
            outbox.enqueue(session, job_id, now=database.now())
        base_lease.rung(session, job_id, now=None)  # of a base; no job has such an id
