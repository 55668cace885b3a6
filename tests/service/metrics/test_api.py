"""Requests are counted by template, and nothing of a tenant is in a label."""

from __future__ import annotations

import time

import pytest
from fastapi.testclient import TestClient

from service.app import create_app
from service.db import Database
from service.metrics.api import ApiMetrics
from service.settings import Settings
from service.storage import Storage
from tests.builders import Tenant
from tests.exposition import samples


@pytest.fixture
def database_url(sqlite_url: str) -> str:
    """Nothing here depends on the kind of database."""
    return sqlite_url


@pytest.fixture
def metrics() -> ApiMetrics:
    return ApiMetrics()


@pytest.fixture
def client(settings: Settings, database: Database, storage: Storage, metrics: ApiMetrics) -> TestClient:  # type: ignore[misc]
    app = create_app(settings, database=database, storage=storage, metrics=metrics)
    with TestClient(app, base_url="http://testserver") as client:
        yield client  # type: ignore[misc]


def requests(metrics: ApiMetrics) -> dict[str, float]:
    found = samples(metrics.registry)
    return {
        name.removeprefix("ft_http_requests_total"): value
        for name, value in found.items()
        if name.startswith("ft_http_requests_total")
    }


def test_requests_are_counted_by_route_method_and_class(
    client: TestClient, metrics: ApiMetrics, tenant: Tenant
) -> None:
    for job_id in ("ftjob-one", "ftjob-two"):
        assert client.get(f"/v1/fine_tuning/jobs/{job_id}", headers=tenant.headers).status_code == 404
    assert client.get("/v1/fine_tuning/jobs", headers=tenant.headers).status_code == 200
    assert client.get("/v1/models/ft:a/b:c", headers=tenant.headers).status_code == 404
    assert client.get("/v1/fine_tuning/jobs").status_code == 401
    assert client.put("/v1/fine_tuning/jobs", headers=tenant.headers).status_code == 405
    assert client.get("/healthz").status_code == 200
    assert requests(metrics) == {
        '{method="GET",route="/v1/fine_tuning/jobs/{job_id}",status="4xx"}': 2.0,
        '{method="GET",route="/v1/fine_tuning/jobs",status="2xx"}': 1.0,
        '{method="GET",route="/v1/fine_tuning/jobs",status="4xx"}': 1.0,
        '{method="GET",route="/v1/models/{model:path}",status="4xx"}': 1.0,
        '{method="PUT",route="/v1/fine_tuning/jobs",status="4xx"}': 1.0,
        '{method="GET",route="/healthz",status="2xx"}': 1.0,
    }
    found = samples(metrics.registry)
    assert found['ft_http_request_duration_seconds_count{method="GET",route="/v1/fine_tuning/jobs"}'] == 2


def test_a_client_cannot_make_up_labels(client: TestClient, metrics: ApiMetrics) -> None:
    for i in range(20):
        client.get(f"/made/up/{i}?key=secret{i}")
        client.request(f"MADE{i}", "/healthz")
    found = requests(metrics)
    assert set(found) == {
        '{method="GET",route="none",status="4xx"}',
        '{method="other",route="/healthz",status="4xx"}',
    }


def test_a_bug_is_counted_as_an_error_of_the_server(
    client: TestClient, metrics: ApiMetrics, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.jobs.repository.cut", lambda *_, **__: 1 / 0)
    assert client.get("/v1/fine_tuning/jobs", headers=tenant.headers).status_code == 500
    assert requests(metrics) == {'{method="GET",route="/v1/fine_tuning/jobs",status="5xx"}': 1.0}


def test_two_applications_do_not_share_figures(client: TestClient, metrics: ApiMetrics) -> None:
    client.get("/healthz")
    assert requests(ApiMetrics()) == {}
    assert len(requests(metrics)) == 1


def test_the_public_port_knows_no_metrics(client: TestClient, tenant: Tenant) -> None:
    for path in ("/metrics", "/v1/metrics"):
        for headers in ({}, tenant.headers):
            assert client.get(path, headers=headers).status_code == 404
    assert "/metrics" not in client.get("/openapi.json").json()["paths"]


def test_counting_costs_next_to_nothing() -> None:
    metrics = ApiMetrics()
    started = time.thread_time()
    for _ in range(1000):
        metrics.answered(method="GET", route="/v1/models", status=200, seconds=0.01)
    microseconds = 1e3 * (time.thread_time() - started)
    assert microseconds < 300, f"{microseconds:.0f} us a request"
