"""What tests of sending webhooks do again and again."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from fastapi.testclient import TestClient
from openai import OpenAI
from sqlalchemy import select

from service.db import Database
from service.jobs.service import cancel_job
from service.models import WebhookDelivery
from service.webhooks import delivery
from service.webhooks.delivery import Claim
from tests.builders import Tenant, make_job, make_webhook
from tests.receiver import Received

INTERVAL_SECONDS = 0.02


Create = Callable[..., dict[str, Any]]


def log_of(client: TestClient, tenant: Tenant, webhook_id: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = client.get(
        f"/webhooks/{webhook_id}/deliveries", headers=tenant.headers
    ).json()["data"]
    return rows


def unwrap(message: Received, secret: str) -> Any:
    with OpenAI(api_key="k", webhook_secret=secret) as client:
        return client.webhooks.unwrap(message.body, message.headers)


def make_claim(database: Database, tenant: Tenant, url: str) -> Claim:
    now = time.time()
    with database.transaction() as session:
        make_webhook(session, tenant.project_id, url=url)
        job = make_job(session, tenant.project_id)
        cancel_job(session, project_id=tenant.project_id, job_id=job.id, now=now)
        (id,) = delivery.due(session, limit=1, now=now)
        claim = delivery.claim(session, id, lease_seconds=45, now=now)
    assert claim is not None
    return claim


def states(database: Database) -> list[str]:
    with database.snapshot() as session:
        return list(session.scalars(select(WebhookDelivery.state)))
