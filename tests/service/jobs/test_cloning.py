"""Retrying a job: the same inputs, the changes asked for, and what cannot be repeated."""

from __future__ import annotations

from typing import Any

import openai
import pytest
from fastapi.testclient import TestClient
from openai import OpenAI
from openai.types.fine_tuning import FineTuningJob

from service.db import Database
from service.models import AlignedBase, Job
from tests.builders import BASE_ID, Tenant, get_job, make_base, make_file, make_job

REQUEST = {
    "suffix": "mine",
    "metadata": {"team": "red"},
    "method": {
        "type": "supervised",
        "supervised": {"hyperparameters": {"n_epochs": 2, "learning_rate_multiplier": 0.5}},
    },
    "lora": {"r": 4, "lora_alpha": 8},
}
SAME = ("spec", "method", "hyperparameters", "suffix", "user_metadata", "seed", "base_id")


@pytest.fixture
def original(client: TestClient, database: Database, tenant: Tenant) -> str:
    """Made over the API, with a seed that the server drew."""
    with database.transaction() as session:
        make_base(session)
        files = [make_file(session, tenant.project_id).id for _ in range(2)]
    body = {"model": BASE_ID, "training_file": files[0], "validation_file": files[1], **REQUEST}
    answer = client.post("/fine_tuning/jobs", json=body, headers=tenant.headers)
    assert answer.status_code == 200, answer.text
    job_id: str = answer.json()["id"]
    return job_id


def retry(client: TestClient, tenant: Tenant, job_id: str, **changes: Any) -> Any:
    return client.post(f"/fine_tuning/jobs/{job_id}/retry", json=changes or None, headers=tenant.headers)


def same(database: Database, first: str, second: str, names: tuple[str, ...] = SAME) -> None:
    one, other = get_job(database, first), get_job(database, second)
    assert {name: getattr(one, name) for name in names} == {name: getattr(other, name) for name in names}
    assert (one.training_file_id, one.validation_file_id) == (
        other.training_file_id,
        other.validation_file_id,
    )


def test_without_a_body_everything_is_the_same(
    client: TestClient, database: Database, tenant: Tenant, original: str
) -> None:
    body = retry(client, tenant, original).json()
    assert body["id"] != original
    assert (body["status"], body["cloned_from"], body["result_files"]) == ("queued", original, [])
    same(database, original, body["id"])
    # And a clone of the clone.
    again = retry(client, tenant, body["id"]).json()
    assert again["cloned_from"] == body["id"]
    same(database, original, again["id"])


@pytest.mark.parametrize("status", ["failed", "succeeded", "cancelled", "running", "paused"])
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_job_in_any_state(
    client: TestClient, database: Database, tenant: Tenant, original: str, status: str
) -> None:
    with database.transaction() as session:
        job = session.get_one(Job, original)
        job.status, job.stage, job.error_code = status, "train", "worker_lost"
    body = retry(client, tenant, original).json()
    assert (body["status"], body["stage"], body["error"], body["attempts"]) == ("queued", "prepare", None, 0)
    assert get_job(database, original).status == status


def test_the_body_replaces_fields(
    client: TestClient, database: Database, tenant: Tenant, original: str
) -> None:
    body = retry(
        client, tenant, original, hyperparameters={"n_epochs": 5}, suffix=None, seed=7, lora={"r": 8}
    ).json()
    assert body["hyperparameters"]["n_epochs"] == 5, "although the old request said it in `method`"
    assert body["hyperparameters"]["learning_rate_multiplier"] == 1.0
    assert (body["user_provided_suffix"], body["seed"], body["lora"]["r"]) == (None, 7, 8)
    assert body["metadata"] == {"team": "red"}
    without = retry(client, tenant, original, validation_file=None).json()
    assert without["validation_file"] is None


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_auto_is_chosen_anew(client: TestClient, database: Database, tenant: Tenant, original: str) -> None:
    assert get_job(database, original).hyperparameters["batch_size"] == 16
    with database.transaction() as session:
        base = session.get_one(AlignedBase, BASE_ID)
        spec = dict(base.default_spec)
        base.default_spec = spec | {"train": spec["train"] | {"batch_size": 4}}
    body = retry(client, tenant, original).json()
    assert body["hyperparameters"]["batch_size"] == 4


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_job_older_than_the_record_of_requests(
    client: TestClient, database: Database, tenant: Tenant, original: str
) -> None:
    with database.transaction() as session:
        session.get_one(Job, original).request = None
    body = retry(client, tenant, original).json()
    same(database, original, body["id"])


@pytest.mark.parametrize(
    ("changes", "status", "code", "param"),
    [
        ({"training_file": None}, 400, "missing_required_parameter", "training_file"),
        ({"training_file": "file-x"}, 404, "file_not_found", "training_file"),
        ({"model": "x"}, 404, "model_not_found", "model"),
        ({"seed": -1}, 400, "invalid_value", "seed"),
        ({"surprise": 1}, 400, "unknown_parameter", "surprise"),
    ],
)
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_changes_that_cannot_be(
    client: TestClient,
    tenant: Tenant,
    original: str,
    changes: dict[str, Any],
    status: int,
    code: str,
    param: str,
) -> None:
    answer = retry(client, tenant, original, **changes)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (status, code, param), answer.text


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("name", ["training_file", "validation_file"])
def test_a_file_that_was_deleted(
    client: TestClient, database: Database, tenant: Tenant, original: str, name: str
) -> None:
    client.post(f"/fine_tuning/jobs/{original}/cancel", headers=tenant.headers)
    file_id = getattr(get_job(database, original), f"{name}_id")
    assert client.delete(f"/files/{file_id}", headers=tenant.headers).status_code == 200
    answer = retry(client, tenant, original)
    assert (answer.status_code, answer.json()["error"]["param"]) == (404, name)
    assert answer.json()["error"]["code"] == "file_not_found"


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_with_the_client(openai_client: OpenAI, database: Database, tenant: Tenant) -> None:
    with database.transaction() as session:
        job_id = make_job(session, tenant.project_id, status="failed").id
    url = f"/fine_tuning/jobs/{job_id}/retry"
    job = openai_client.post(url, cast_to=FineTuningJob)
    assert (job.status, (job.model_extra or {})["cloned_from"]) == ("queued", job_id)
    with pytest.raises(openai.NotFoundError):
        openai_client.post("/fine_tuning/jobs/ftjob-x/retry", cast_to=FineTuningJob)
