"""Attempts of the real loop, counted: an answer, a refusal, and nobody there."""

from __future__ import annotations

import time

import pytest

from service.db import Database
from service.jobs.service import cancel_job
from service.settings import Settings
from tests.builders import Tenant, make_job, make_webhook
from tests.exposition import samples
from tests.receiver import Receiver
from tests.waiting import wait_until
from workers.metrics import WorkerMetrics
from workers.webhooks import webhook_loop_from_settings

sqlite_only = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@sqlite_only
def test_attempts_are_counted_by_what_came_back(
    database: Database, settings: Settings, tenant: Tenant, receiver: Receiver
) -> None:
    metrics = WorkerMetrics()

    def end_a_job(url: str) -> None:
        with database.transaction() as session:
            make_webhook(session, tenant.project_id, url=url)
            job = make_job(session, tenant.project_id)
            cancel_job(session, project_id=tenant.project_id, job_id=job.id, now=time.time())

    def count(code: str) -> float:
        return samples(metrics.registry).get(f'ft_webhook_attempts_total{{code="{code}"}}', 0)

    with webhook_loop_from_settings(database, settings, metrics):
        end_a_job(receiver.url)
        wait_until(lambda: count("2xx") == 1)
        receiver.status = 503
        end_a_job("https://127.0.0.1:443/nobody")
        wait_until(lambda: count("5xx") == 1)
        wait_until(lambda: sum(samples(metrics.registry).get(name, 0) for name in _errors(metrics)) == 1)


def _errors(metrics: WorkerMetrics) -> list[str]:
    return [
        name
        for name in samples(metrics.registry)
        if name.startswith("ft_webhook_attempts_total") and "xx" not in name
    ]
