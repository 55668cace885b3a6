"""Models over HTTP, and what an operator registers."""

from __future__ import annotations

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import select

from autoclave.errors import BaseMismatchError, InputError
from autoclave.spec import JobSpec, SafetyProfile, TrainSpec
from service.catalog import retire_base
from service.catalog.registration import UnknownBaseError
from service.db import Database
from service.models import AlignedBase, AuditEntry
from tests.builders import BASE_ID, Tenant, make_adapter, make_base, make_job


def test_models_are_the_bases_and_ones_own_adapters(
    client: TestClient, database: Database, tenant: Tenant
) -> None:
    with database.transaction() as session:
        make_base(session, id="org/other", now=5.0)
        make_base(session, id="retired", now=5.0)
        retire_base(session, "retired", now=6.0)
        adapter = make_adapter(session, make_job(session, tenant.project_id), created_at=9.0)
    models = client.get("/models", headers=tenant.headers).json()
    assert models["object"] == "list"
    assert [model["id"] for model in models["data"]] == [BASE_ID, "org/other", adapter.model_id]
    assert models["data"][1] == {
        "id": "org/other",
        "object": "model",
        "created": 5,
        "owned_by": "autoclave",
        "parent": None,
        "expires_at": None,
        "harmful_score": None,
        "alignment_method": "sft",
        "sha256": "b" * 64,
    }
    tuned = {
        "id": adapter.model_id,
        "object": "model",
        "created": 9,
        "owned_by": tenant.organization_id,
        "parent": BASE_ID,
        "expires_at": None,
        "harmful_score": None,
        "alignment_method": None,
        "sha256": None,
    }
    assert models["data"][2] == tuned
    assert client.get(f"/models/{adapter.model_id}", headers=tenant.headers).json() == tuned
    encoded = adapter.model_id.replace("/", "%2F").replace(":", "%3A")
    assert client.get(f"/models/{encoded}", headers=tenant.headers).json() == tuned
    assert client.get("/models/org/other", headers=tenant.headers).json() == models["data"][1]


@pytest.mark.parametrize("model", ["nothing", "org/nothing", "retired", ""])
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_other_models_are_not_found(
    client: TestClient, database: Database, tenant: Tenant, model: str
) -> None:
    with database.transaction() as session:
        make_base(session, id="retired")
        retire_base(session, "retired", now=6.0)
    answer = client.get(f"/models/{model}", headers=tenant.headers)
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "model_not_found"


def test_registering_again_changes_all_but_the_weights(database: Database) -> None:
    with database.transaction() as session:
        make_base(session, now=1.0)
        retire_base(session, BASE_ID, now=2.0)
    spec = JobSpec(train=TrainSpec(n_epochs=9))
    with database.transaction() as session:
        make_base(session, revision="2", default_spec=spec, now=3.0)
    with database.snapshot() as session:
        base = session.get_one(AlignedBase, BASE_ID)
    assert (base.revision, base.created_at, base.retired_at) == ("2", 1.0, None)
    assert JobSpec.model_validate(base.default_spec) == spec


def test_other_weights_need_another_id(database: Database) -> None:
    with database.transaction() as session:
        make_base(session)
    with (
        pytest.raises(BaseMismatchError, match="register it under a new id"),
        database.transaction() as session,
    ):
        make_base(session, sha256="f" * 64)


def test_retiring_what_is_not_there(database: Database) -> None:
    with pytest.raises(UnknownBaseError, match="'x'"), database.transaction() as session:
        retire_base(session, "x", now=1.0)


def test_registering_is_written_down_once(database: Database) -> None:
    """`autoclave up` registers its base at every start; only a change is a deed."""
    for revision in ("1", "1", "2"):
        with database.transaction() as session:
            make_base(session, revision=revision)
    for _ in range(2):
        with database.transaction() as session:
            retire_base(session, BASE_ID, now=1.0)
    with database.snapshot() as session:
        entries = session.scalars(select(AuditEntry).order_by(AuditEntry.sequence)).all()
    assert [(entry.action, entry.details["revision"]) for entry in entries] == [
        ("base.registered", "1"),
        ("base.registered", "2"),
        ("base.retired", "2"),
    ]
    assert {(entry.actor, entry.organization_id) for entry in entries} == {("system", None)}


def test_an_id_that_would_hide_behind_the_download(database: Database) -> None:
    with pytest.raises(InputError, match="acme/adapter"), database.transaction() as session:
        make_base(session, id="acme/adapter")


def test_measurements_stay_as_long_as_the_profile_measures_harm_alike(
    client: TestClient, database: Database, tenant: Tenant
) -> None:
    def register(**overrides: object) -> float | None:
        with database.transaction() as session:
            make_base(session, **overrides)
        score = client.get(f"/models/{BASE_ID}", headers=tenant.headers).json()["harmful_score"]
        assert score is None or isinstance(score, float)
        return score

    profile = SafetyProfile(version="1", realign="/r", harmful_eval="/h", judge="refusal")
    measurements = {"floor": {"harmful_score": 12.5}, "generation": {"tokens_per_second": 7.0}}
    assert register(safety_profile=profile) is None
    assert register(safety_profile=profile, measurements=measurements) == 12.5
    assert register(safety_profile=profile.model_copy(update={"version": "2"})) == 12.5
    assert register(safety_profile=profile.model_copy(update={"harmful_eval": "/other"})) is None
    assert register(safety_profile=profile, measurements=measurements) == 12.5
    with database.transaction() as session:
        job = make_job(session, tenant.project_id)
        assert session.get_one(AlignedBase, job.base_id).measurements == measurements
