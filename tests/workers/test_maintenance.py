"""Outbox, reaper and doorbell on both databases, and the loop around them."""

from __future__ import annotations

import threading
import time

import pytest
from sqlalchemy import select

from service.db import Database
from service.jobs import lease
from service.models import File, FirstAnswer, Job, OutboxMessage, Upload, UploadPart
from service.storage import Storage, part_key
from service.uploads.service import EXPIRY_GRACE_SECONDS
from tests.builders import Tenant, get_job, make_adapter, make_file, make_part, make_upload
from tests.waiting import wait_until
from tests.workers.conftest import QueuedJob
from workers.maintenance import Maintenance, MaintenanceLoop
from workers.sweep import FILE_GRACE_SECONDS, sweep


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url


class Broker:
    """Takes messages, or refuses them while it is down."""

    def __init__(self) -> None:
        self.received: list[str] = []
        self.down = False

    def send(self, job_id: str) -> None:
        if self.down:
            raise ConnectionError("the broker is down")
        self.received.append(job_id)


@pytest.fixture
def broker() -> Broker:
    return Broker()


@pytest.fixture
def maintenance(database: Database, storage: Storage, broker: Broker) -> Maintenance:
    return Maintenance(database, storage, broker.send, max_attempts=2, resend_after_seconds=60)


def claim(database: Database, job_id: str, *, now: float) -> None:
    with database.transaction() as session:
        assert lease.claim(session, job_id, owner="me", ttl_seconds=10, max_attempts=9, now=now)


def test_each_message_is_sent_once_in_order(
    maintenance: Maintenance, broker: Broker, queued_job: QueuedJob
) -> None:
    job_ids = [queued_job() for _ in range(3)]
    assert maintenance.publish(time.time()) == 3
    assert maintenance.publish(time.time()) == 0
    assert broker.received == job_ids


def test_a_broker_that_is_down_keeps_the_messages_pending(
    maintenance: Maintenance, broker: Broker, queued_job: QueuedJob
) -> None:
    first = queued_job()
    maintenance.publish(time.time())
    second = queued_job()
    broker.down = True
    with pytest.raises(ConnectionError):
        maintenance.publish(time.time())
    broker.down = False
    assert maintenance.publish(time.time()) == 1
    assert broker.received == [first, second]


def test_what_was_sent_before_a_failure_is_not_sent_again(
    database: Database, storage: Storage, queued_job: QueuedJob
) -> None:
    job_ids = [queued_job() for _ in range(2)]
    received: list[str] = []

    def send(job_id: str) -> None:
        if len(received) == 1 and not recovered:
            raise ConnectionError("gone")
        received.append(job_id)

    recovered = False
    maintenance = Maintenance(database, storage, send, max_attempts=2, resend_after_seconds=60)
    with pytest.raises(ConnectionError):
        maintenance.publish(time.time())
    recovered = True
    maintenance.publish(time.time())
    assert received == job_ids


def test_a_silent_worker_loses_its_job_until_no_attempt_is_left(
    maintenance: Maintenance, database: Database, queued_job: QueuedJob
) -> None:
    job_id = queued_job()
    claim(database, job_id, now=100.0)
    assert maintenance.reap(109.0) == 0
    assert maintenance.reap(111.0) == 1
    assert get_job(database, job_id).status == "queued"

    claim(database, job_id, now=200.0)
    assert maintenance.reap(211.0) == 1
    job = get_job(database, job_id)
    assert (job.status, job.error_code) == ("failed", "worker_lost")
    assert maintenance.reap(300.0) == 0


def test_a_lost_worker_of_a_cancelled_job(
    maintenance: Maintenance, database: Database, queued_job: QueuedJob
) -> None:
    job_id = queued_job()
    claim(database, job_id, now=100.0)
    with database.transaction() as session:
        session.get_one(Job, job_id).cancel_requested_at = 105.0
    maintenance.reap(111.0)
    assert get_job(database, job_id).status == "cancelled"


def test_an_unanswered_doorbell_is_rung_again(
    maintenance: Maintenance, database: Database, broker: Broker, queued_job: QueuedJob
) -> None:
    job_id = queued_job(created_at=1000.0)
    maintenance.publish(1000.0)
    assert maintenance.ring_again(1059.0) == 0
    assert maintenance.ring_again(1061.0) == 1
    assert maintenance.ring_again(1062.0) == 0
    maintenance.publish(1062.0)
    assert broker.received == [job_id, job_id]


def test_a_queued_job_that_nobody_may_claim_fails(
    maintenance: Maintenance, database: Database, queued_job: QueuedJob
) -> None:
    job_id = queued_job(created_at=1000.0, attempt_count=2)
    maintenance.ring_again(2000.0)
    job = get_job(database, job_id)
    assert (job.status, job.error_code) == ("failed", "worker_lost")


def test_sent_messages_are_forgotten_after_a_day(
    maintenance: Maintenance, database: Database, queued_job: QueuedJob
) -> None:
    queued_job()
    maintenance.publish(1000.0)
    maintenance.tidy(1000.0 + 3600)
    with database.snapshot() as session:
        assert len(session.scalars(select(OutboxMessage.sequence)).all()) == 1
    maintenance.tidy(1000.0 + 25 * 3600)
    with database.snapshot() as session:
        assert session.scalars(select(OutboxMessage.sequence)).all() == []


def test_the_sweep_deletes_only_what_no_job_needs(
    database: Database, storage: Storage, queued_job: QueuedJob
) -> None:
    ids = {status: queued_job(status=status) for status in ("queued", "running", "failed", "succeeded")}
    for job_id in ids.values():
        storage.put(f"private/{job_id}/1/train/adapter.safetensors", b"x")
        storage.put(f"adapters/{job_id}/1.tar", b"x")
        storage.put(f"adapters/{job_id}/2.tar", b"x")
    storage.put("files/file-1", b"x")
    with database.transaction() as session:
        job = session.get_one(Job, ids["succeeded"])
        make_adapter(session, job, storage_key=f"adapters/{job.id}/2.tar")

    deleted = sweep(database, storage, now=time.time())

    assert set(deleted) == {
        f"private/{ids['failed']}/1/train/adapter.safetensors",
        f"private/{ids['succeeded']}/1/train/adapter.safetensors",
        f"adapters/{ids['failed']}/1.tar",
        f"adapters/{ids['failed']}/2.tar",
        f"adapters/{ids['succeeded']}/1.tar",
    }
    assert not set(deleted) & set(storage.keys("private") + storage.keys("adapters"))
    assert storage.keys("files") == ["files/file-1"]
    assert sweep(database, storage, now=time.time()) == []


def test_the_sweep_deletes_files_that_no_row_names(
    database: Database, storage: Storage, tenant: Tenant
) -> None:
    """An API process killed between storing a file and writing its row, or between the two of a deletion."""
    with database.transaction() as session:
        kept = make_file(session, tenant.project_id)
        deleted = make_file(session, tenant.project_id, deleted_at=1.0)
    for key in (kept.storage_key, deleted.storage_key, "files/file-nobody"):
        storage.put(key, b"x")
    assert sweep(database, storage, now=time.time()) == [], "a row may still be on its way"
    later = time.time() + 2 * FILE_GRACE_SECONDS
    assert set(sweep(database, storage, now=later)) == {deleted.storage_key, "files/file-nobody"}
    assert storage.keys("files") == [kept.storage_key]


def test_the_sweep_deletes_parts_that_no_row_names(
    database: Database, storage: Storage, tenant: Tenant
) -> None:
    """An API process killed between storing a part and writing its row, or after the upload ended."""
    with database.transaction() as session:
        pending = make_upload(session, tenant.project_id, expires_at=time.time() + 1e6)
        ended = make_upload(session, tenant.project_id, status="completed")
        kept = make_part(session, pending)
    keys = [part_key(pending.id, kept.id), part_key(pending.id, "part_x"), part_key(ended.id, "part_y")]
    for key in keys:
        storage.put(key, b"x")
    assert sweep(database, storage, now=time.time()) == [], "a row may still be on its way"
    assert set(sweep(database, storage, now=time.time() + 2 * FILE_GRACE_SECONDS)) == set(keys[1:])
    assert storage.keys("uploads") == keys[:1]


def test_maintenance_ends_what_has_expired(
    maintenance: Maintenance, database: Database, storage: Storage, tenant: Tenant
) -> None:
    now = time.time()
    with database.transaction() as session:
        file = make_file(session, tenant.project_id, expires_at=now - 1)
        storage.put(file.storage_key, b"x")
        upload = make_upload(session, tenant.project_id, expires_at=now - EXPIRY_GRACE_SECONDS - 1)
        part = make_part(session, upload)
        storage.put(part_key(upload.id, part.id), b"x")
        for name, expires_at in (("over", now - 1), ("kept", now + 60)):
            session.add(
                FirstAnswer(
                    project_id=tenant.project_id,
                    name=name,
                    fingerprint="f" * 64,
                    status=200,
                    body="{}",
                    created_at=now,
                    expires_at=expires_at,
                )
            )
    maintenance.tidy(now)
    with database.snapshot() as session:
        assert session.get_one(File, file.id).deleted_at == now
        assert session.get_one(Upload, upload.id).status == "expired"
        assert session.scalars(select(UploadPart.id)).all() == []
        assert session.scalars(select(FirstAnswer.name)).all() == ["kept"]
    assert storage.keys("") == []


def test_the_loop_survives_a_broker_outage(
    maintenance: Maintenance, broker: Broker, queued_job: QueuedJob
) -> None:
    broker.down = True
    with MaintenanceLoop(maintenance, interval_seconds=0.02):
        job_id = queued_job()
        time.sleep(0.3)
        assert broker.received == []
        broker.down = False
        wait_until(lambda: broker.received == [job_id])
    assert not any(thread.name == "maintenance" for thread in threading.enumerate())


def test_several_loops_at_once_lose_nothing(
    database: Database, storage: Storage, queued_job: QueuedJob
) -> None:
    broker = Broker()
    maintenances = [
        Maintenance(database, storage, broker.send, max_attempts=2, resend_after_seconds=60) for _ in range(3)
    ]
    job_ids = {queued_job() for _ in range(10)}
    dead = queued_job()
    claim(database, dead, now=time.time() - 100)
    loops = [MaintenanceLoop(maintenance, interval_seconds=0.01) for maintenance in maintenances]
    with loops[0], loops[1], loops[2]:
        wait_until(lambda: set(broker.received) == {*job_ids, dead})
    assert get_job(database, dead).status == "queued"
    with database.snapshot() as session:
        unsent = select(OutboxMessage.sequence).where(OutboxMessage.sent_at.is_(None))
        assert session.scalars(unsent).all() == []
