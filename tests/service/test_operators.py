from __future__ import annotations

import time

import pytest

from service import operators
from service.auth import UnknownIdError, digest
from service.db import Database
from service.models import OperatorKey
from tests.builders import audit_entries


def test_a_key_is_recognised_until_it_is_revoked(database: Database) -> None:
    now = time.time()
    with database.transaction() as session:
        row, key = operators.create_operator_key(session, name="mine", now=now)
        found = operators.find_operator_key(session, key, now=now)
        assert found is not None
        assert found.id == row.id
        assert operators.find_operator_key(session, key + "x", now=now) is None
        operators.revoke_operator_key(session, key_id=row.id, now=now)
        assert operators.find_operator_key(session, key, now=now) is None
        actions = [entry.action for entry in audit_entries(session)]
    assert actions[-2:] == ["operator_key.created", "operator_key.deleted"]


def test_a_key_ends(database: Database) -> None:
    now = time.time()
    with database.transaction() as session:
        _, key = operators.create_operator_key(session, name="mine", now=now, expires_at=now + 10)
        assert operators.find_operator_key(session, key, now=now + 9) is not None
        assert operators.find_operator_key(session, key, now=now + 11) is None


def test_the_secret_is_not_stored(database: Database) -> None:
    with database.transaction() as session:
        row, key = operators.create_operator_key(session, name="mine", now=time.time())
        stored = session.get_one(OperatorKey, row.id)
    assert stored.secret_sha256 == digest(key)
    assert key.startswith(stored.prefix)
    assert len(stored.prefix) < 20


def test_revoking_what_does_not_exist(database: Database) -> None:
    with database.transaction() as session, pytest.raises(UnknownIdError, match="opkey_x"):
        operators.revoke_operator_key(session, key_id="opkey_x", now=time.time())
