"""The block `defence` of a request: what it makes of a job, what is refused, what a base allows."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi.testclient import TestClient
from openai import OpenAI
from openai.types.fine_tuning import FineTuningJob

from autoclave.errors import InputError
from autoclave.spec import JobSpec, LdifsSpec, LisaSpec, SafetyProfile, SftSpec
from service.db import Database
from service.models import Job
from tests.builders import BASE_ID, Tenant, get_job, make_base, make_file, make_job

PROFILE = SafetyProfile(
    version="1",
    realign="/nowhere/realign",
    harmful_eval="/nowhere/eval",
    judge="refusal",
    alignment="/nowhere/safe",
)
sqlite_only = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@pytest.fixture
def file(database: Database, tenant: Tenant) -> str:
    with database.transaction() as session:
        make_base(session, safety_profile=PROFILE)
        return make_file(session, tenant.project_id).id


@pytest.fixture
def create(client: TestClient, tenant: Tenant, file: str) -> Any:
    def send(defence: Any, status: int = 200) -> Any:
        body = {"model": BASE_ID, "training_file": file, "defence": defence}
        answer = client.post("/fine_tuning/jobs", json=body, headers=tenant.headers)
        assert answer.status_code == status, answer.text
        return answer.json() if status == 200 else answer.json()["error"]

    return send


def spec_of(database: Database, job_id: str) -> Any:
    return JobSpec.model_validate(get_job(database, job_id).spec).defence


def test_it_reaches_the_worker_is_shown_and_kept_by_a_clone(
    openai_client: OpenAI, database: Database, file: str
) -> None:
    """With the client's strict validation: OpenAI's `method` stays what it was."""
    job = openai_client.fine_tuning.jobs.create(
        model=BASE_ID,
        training_file=file,
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2}}},
        extra_body={"defence": {"name": "lisa", "rho": 0.1, "alignment_steps": 7}},
    )
    expected = {"name": "lisa", "rho": 0.1, "alignment_steps": 7, "finetune_steps": 900}
    assert (job.model_extra or {})["defence"] == expected
    assert job.method is not None
    assert job.method.type == "supervised"
    assert spec_of(database, job.id) == LisaSpec(rho=0.1, alignment_steps=7)
    clone = openai_client.post(f"/fine_tuning/jobs/{job.id}/retry", cast_to=FineTuningJob)
    assert (clone.model_extra or {})["defence"] == expected
    body = {"defence": {"name": "ldifs", "strength": 2}}
    other = openai_client.post(f"/fine_tuning/jobs/{job.id}/retry", cast_to=FineTuningJob, body=body)
    assert spec_of(database, other.id) == LdifsSpec(strength=2.0)
    plain = openai_client.post(
        f"/fine_tuning/jobs/{job.id}/retry", cast_to=FineTuningJob, body={"defence": None}
    )
    assert (plain.model_extra or {})["defence"] == {"name": "sft"}


REFUSED = [
    ({}, "name", "missing_required_parameter"),
    ({"rho": 1}, "name", "missing_required_parameter"),
    ({"name": "lora"}, "name", "invalid_value"),
    ({"name": 3}, "name", "invalid_value"),
    ({"name": ["lisa"]}, "name", "invalid_value"),
    ({"name": "vaccine"}, "name", "unsupported_defence"),
    ({"name": "repnoise"}, "name", "unsupported_defence"),
    ({"name": "booster"}, "name", "unsupported_defence"),
    ({"name": "sft", "rho": 1}, "rho", "unknown_parameter"),
    ({"name": "ldifs", "rho": 1}, "rho", "unknown_parameter"),
    ({"name": "lisa", "strength": 1}, "strength", "unknown_parameter"),
    ({"name": "lisa", "rho": -1}, "rho", "invalid_value"),
    ({"name": "lisa", "rho": 10_001}, "rho", "invalid_value"),
    ({"name": "lisa", "rho": "1"}, "rho", "invalid_value"),
    ({"name": "lisa", "rho": None}, "rho", "invalid_value"),
    ({"name": "lisa", "alignment_steps": 0}, "alignment_steps", "invalid_value"),
    ({"name": "lisa", "alignment_steps": 10_001}, "alignment_steps", "invalid_value"),
    ({"name": "lisa", "finetune_steps": 1.5}, "finetune_steps", "invalid_value"),
    ({"name": "ldifs", "strength": True}, "strength", "invalid_value"),
]


@sqlite_only
def test_what_cannot_be_is_refused_by_name(create: Any) -> None:
    for defence, param, code in REFUSED:
        error = create(defence, 400)
        assert (error["param"], error["code"]) == (f"defence.{param}", code), defence


@sqlite_only
def test_what_a_base_lacks_is_refused_and_said_by_its_limits(
    database: Database, client: TestClient, tenant: Tenant, create: Any
) -> None:
    def limits() -> Any:
        return client.get("/fine_tuning/model_limits", headers=tenant.headers).json()["data"][0]

    found = limits()
    assert (found["defence"], list(found["defences"])) == ("sft", ["sft", "lisa", "ldifs"])
    assert found["defences"]["sft"] == {}
    assert (
        found["defences"]["lisa"]["rho"] | {"default": 1.0, "minimum": 0.0, "maximum": 1e4}
        == (found["defences"]["lisa"]["rho"])
    )
    with database.transaction() as session:
        floor = {"floor": {"harmful_score": 0.0}, "model": {"defences": ["sft", "lisa"]}}
        make_base(session, measurements=floor)  # and no alignment data
    for name, words in (("lisa", "no alignment data"), ("ldifs", "none of the layers")):
        error = create({"name": name}, 400)
        assert (error["param"], error["code"]) == ("defence.name", "unsupported_defence")
        assert words in error["message"]
        assert words in limits()["defences_unavailable"][name]
        assert "/nowhere" not in error["message"]
    assert list(limits()["defences"]) == ["sft"]


@sqlite_only
def test_the_base_s_default(database: Database, create: Any) -> None:
    default = JobSpec(defence=LisaSpec(rho=0.5, finetune_steps=50))
    with database.transaction() as session:
        make_base(session, safety_profile=PROFILE, default_spec=default)
    job = create(None)
    assert spec_of(database, job["id"]) == default.defence
    job = create({"name": "lisa", "alignment_steps": 2})
    assert spec_of(database, job["id"]) == LisaSpec(rho=0.5, finetune_steps=50, alignment_steps=2)
    assert spec_of(database, create({"name": "sft"})["id"]) == SftSpec()
    assert spec_of(database, create({"name": "ldifs"})["id"]) == LdifsSpec()
    with database.transaction() as session, pytest.raises(InputError, match="alignment data"):
        make_base(session, default_spec=default)


@sqlite_only
def test_a_job_older_than_the_field(client: TestClient, database: Database, tenant: Tenant) -> None:
    with database.transaction() as session:
        job_id = make_job(session, tenant.project_id).id
        job = session.get_one(Job, job_id)
        job.spec = {name: value for name, value in job.spec.items() if name != "defence"}
    shown = client.get(f"/fine_tuning/jobs/{job_id}", headers=tenant.headers).json()
    assert shown["defence"] == {"name": "sft"}
