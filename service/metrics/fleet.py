"""Gauges that are read from the database when somebody asks. Every API process shows the same: take the
maximum over them, not the sum."""

from __future__ import annotations

import time
from collections.abc import Iterator

import structlog
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from service.db import Database
from service.fleet import repository as fleet
from service.fleet.states import WorkerState
from service.jobs.states import TRANSITIONS, Stage, State, Status

log = structlog.get_logger(__name__)

# Shown also while no job is in them: a line that ends looks like one that nobody measures.
_STATES: tuple[State, ...] = (
    *TRANSITIONS,
    (Status.SUCCEEDED, Stage.PUBLISH),
    *((status, stage) for status in (Status.FAILED, Status.CANCELLED) for stage in Stage),
)


class FleetCollector(Collector):
    def __init__(self, database: Database) -> None:
        self._database = database

    def describe(self) -> list[Metric]:
        """Empty: registering must not wait for a database."""
        return []

    def collect(self) -> Iterator[Metric]:
        """With a database that does not answer, `ft_database_up` 0 and nothing else."""
        now = time.time()
        try:
            with self._database.snapshot() as session:
                counts = fleet.job_counts(session)
                queue = fleet.queue(session, now=now)
                workers = fleet.workers(session, now=now)
                outbox = fleet.unsent(session, now=now)
                num_stuck = len(fleet.stuck_jobs(session, now=now))
        except Exception as error:
            log.warning("metrics without the database", error=type(error).__name__)
            yield GaugeMetricFamily("ft_database_up", "Whether the database answered this scrape.", 0)
            return
        yield GaugeMetricFamily("ft_database_up", "Whether the database answered this scrape.", 1)
        numbers = {(status.value, stage.value): 0 for status, stage in _STATES}
        numbers |= {(count.status, count.stage): count.number for count in counts}
        jobs = GaugeMetricFamily("ft_jobs", "Jobs by status and stage.", labels=["status", "stage"])
        for state, number in sorted(numbers.items()):
            jobs.add_metric(state, number)
        yield jobs
        yield GaugeMetricFamily(
            "ft_job_queue_age_seconds",
            "Age of the oldest queued job that a worker could take; 0 without one.",
            queue.oldest_age_seconds or 0.0,
        )
        yield GaugeMetricFamily(
            "ft_jobs_held", "Queued jobs that wait for another job of their project.", queue.num_held
        )
        yield GaugeMetricFamily(
            "ft_jobs_stuck", "Running jobs without a heartbeat or without a step for too long.", num_stuck
        )
        yield GaugeMetricFamily("ft_outbox_pending", "Doorbells that are not sent yet.", outbox.num_pending)
        yield GaugeMetricFamily(
            "ft_outbox_age_seconds",
            "Age of the oldest doorbell that is not sent yet; 0 without one.",
            outbox.oldest_age_seconds or 0.0,
        )
        yield from _of_workers(workers)


def _of_workers(workers: list[fleet.WorkerView]) -> Iterator[Metric]:
    states = GaugeMetricFamily(
        "ft_workers", "Workers by what they last said of themselves.", labels=["state"]
    )
    for state in WorkerState:
        if state is not WorkerState.GONE:
            states.add_metric([state.value], sum(worker.state is state for worker in workers))
    yield states
    labels = ["worker", "device"]
    ages = GaugeMetricFamily(
        "ft_worker_heartbeat_age_seconds", "Since a worker last wrote its row.", labels=labels
    )
    used = GaugeMetricFamily("ft_worker_memory_used_bytes", "Memory in use on its device.", labels=labels)
    total = GaugeMetricFamily("ft_worker_memory_bytes", "Memory of its device.", labels=labels)
    for worker in workers:
        values = [worker.id, worker.device_kind]
        ages.add_metric(values, worker.heartbeat_age_seconds)
        if worker.memory_used_bytes is not None:
            used.add_metric(values, worker.memory_used_bytes)
        if worker.memory_total_bytes is not None:
            total.add_metric(values, worker.memory_total_bytes)
    yield from (ages, used, total)
