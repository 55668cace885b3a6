"""Leases on registrations of bases."""

from __future__ import annotations

import time
from typing import Any

import pytest
from fastapi.testclient import TestClient

from service.bases import lease
from service.db import Database
from service.jobs.transitions import LeaseLostError

REGISTRATIONS = "/organization/base_registrations"


def test_leases(database: Database, client: TestClient, admin: dict[str, str], body: dict[str, Any]) -> None:
    """Of another class nobody; a silent worker's is taken again until no attempt is left."""
    made = client.post(REGISTRATIONS, headers=admin, json=body | {"worker_class": "h100"}).json()
    for attempt in (1, 2):
        with database.transaction() as session:
            assert lease.to_ring(session, rung_before=0.0) == [made["id"]]
            lease.rung(session, made["id"], now=10.0)
            assert lease.to_ring(session, rung_before=9.0) == []
            assert not lease.any_waits(session, worker_class="default")
            assert lease.any_waits(session, worker_class="h100")
            claim = lease.claim_next(session, worker_class="h100", owner="w", ttl_seconds=5, now=10.0)
        assert claim is not None
        assert (claim.attempt, claim.fencing_number) == (attempt, attempt)
        with database.transaction() as session:
            assert lease.claim_next(session, worker_class="h100", owner="x", ttl_seconds=5, now=11.0) is None
            assert not lease.expired(session, now=14.0)
            assert lease.reap(session, max_attempts=2, now=14.0) == 0
            assert lease.expired(session, now=16.0)
            assert lease.reap(session, max_attempts=2, now=16.0) == 1
        with database.transaction() as session, pytest.raises(LeaseLostError):
            lease.write(session, claim, progress={"doing": "nothing"})
        with database.snapshot() as session, pytest.raises(LeaseLostError):
            lease.cancel_asked(session, claim)
    ended = client.get(f"{REGISTRATIONS}/{made['id']}", headers=admin).json()
    assert (ended["status"], ended["error"]["code"]) == ("failed", "worker_lost")
    assert ended["finished_at"] == 16
    assert abs(ended["created_at"] - time.time()) < 60
