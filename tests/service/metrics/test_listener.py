"""The listener of metrics: one page, an address of its own, and an address that is taken."""

from __future__ import annotations

import socket
import urllib.error
import urllib.request
from pathlib import Path

import httpx
import pytest
from prometheus_client import CollectorRegistry, Gauge

from service.metrics.disk import DiskCollector, storage_folder
from service.metrics.listener import MetricsListener
from service.settings import Settings
from service.startup import StartError
from tests.exposition import samples, samples_of


@pytest.fixture
def registry() -> CollectorRegistry:
    registry = CollectorRegistry()
    Gauge("answer", "An answer.", registry=registry).set(42)
    return registry


def test_it_serves_its_registry_and_nothing_else(registry: CollectorRegistry) -> None:
    with MetricsListener(registry, host="127.0.0.1", port=0) as listener:
        url = f"http://127.0.0.1:{listener.port}"
        answer = httpx.get(f"{url}/metrics")
        assert answer.status_code == 200
        assert samples_of(answer.text) == {"answer": 42.0}
        assert answer.headers["cache-control"] == "no-store"
        assert "python" not in answer.headers["server"].lower()
        openmetrics = httpx.get(f"{url}/metrics", headers={"accept": "application/openmetrics-text"})
        assert openmetrics.text.rstrip().endswith("# EOF")
        assert httpx.get(f"{url}/").status_code == 404
        assert httpx.post(f"{url}/metrics").status_code == 501
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(f"{url}/metrics", timeout=2)


def test_a_scraper_that_hangs_up_stops_nobody(registry: CollectorRegistry) -> None:
    with MetricsListener(registry, host="127.0.0.1", port=0) as listener:
        for _ in range(3):
            with socket.create_connection(("127.0.0.1", listener.port)) as connection:
                connection.sendall(b"GET /metr")
        assert httpx.get(f"http://127.0.0.1:{listener.port}/metrics").status_code == 200


def test_an_address_that_is_taken_is_one_line(registry: CollectorRegistry) -> None:
    with (
        MetricsListener(registry, host="127.0.0.1", port=0) as first,
        pytest.raises(StartError, match=f"METRICS_PORT: cannot listen on 127.0.0.1 port {first.port}: "),
    ):
        MetricsListener(registry, host="127.0.0.1", port=first.port)
    with pytest.raises(StartError, match=r"cannot listen on 192\.0\.2\.1 "):
        MetricsListener(registry, host="192.0.2.1", port=0)


def test_disks(tmp_path: Path) -> None:
    registry = CollectorRegistry()
    registry.register(DiskCollector({"storage": tmp_path, "work": tmp_path / "not" / "yet", "none": None}))
    found = samples(registry)
    assert set(found) == {'ft_disk_free_bytes{volume="storage"}', 'ft_disk_size_bytes{volume="storage"}'}
    assert 0 < found['ft_disk_free_bytes{volume="storage"}'] <= found['ft_disk_size_bytes{volume="storage"}']


@pytest.mark.parametrize(
    ("url", "folder"), [("file:///a/b%20c", Path("/a/b c")), ("s3://bucket/prefix", None)]
)
def test_only_a_folder_has_a_disk(url: str, folder: Path | None) -> None:
    assert storage_folder(Settings(database_url="x", storage_url=url)) == folder
