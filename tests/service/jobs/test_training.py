"""The block `training` of a request: what it changes, what is shown, what is refused, what a clone keeps."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi.testclient import TestClient
from openai import AsyncOpenAI, BadRequestError, OpenAI
from openai.types.fine_tuning import FineTuningJob

from autoclave.spec import EarlyStopping, JobSpec, TrainSpec
from service.db import Database
from service.models import AlignedBase, Job
from tests.builders import BASE_ID, Tenant, get_job, make_base, make_file, make_job

DEFAULT = JobSpec(train=TrainSpec(n_epochs=4, batch_size=6, learning_rate=0.002, max_seq_length=512))
GIVEN = {
    "learning_rate": 1e-3,
    "schedule": "linear",
    "warmup_ratio": 0.25,
    "weight_decay": 0.01,
    "max_grad_norm": 0.5,
    "max_seq_length": 1024,
    "too_long": "refuse",
    "packing": True,
    "train_on_inputs": True,
    "evaluations_per_epoch": 2,
    "early_stopping": {"patience": 3, "min_delta": 0.01},
    "activation_checkpointing": "on",
}


@pytest.fixture
def files(database: Database, tenant: Tenant) -> tuple[str, str]:
    with database.transaction() as session:
        make_base(session, default_spec=DEFAULT)
        return make_file(session, tenant.project_id).id, make_file(session, tenant.project_id).id


@pytest.fixture
def create(client: TestClient, tenant: Tenant, files: tuple[str, str]) -> Any:
    def send(training: Any, status: int = 200, **body: Any) -> Any:
        values = {"model": BASE_ID, "training_file": files[0], "validation_file": files[1]} | body
        answer = client.post(
            "/fine_tuning/jobs", json=values | {"training": training}, headers=tenant.headers
        )
        assert answer.status_code == status, answer.text
        return answer.json() if status == 200 else answer.json()["error"]

    return send


sqlite_only = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


def test_every_field_reaches_the_worker_is_shown_and_kept_by_a_clone(
    openai_client: OpenAI, database: Database, files: tuple[str, str]
) -> None:
    job = openai_client.fine_tuning.jobs.create(
        model=BASE_ID, training_file=files[0], validation_file=files[1], extra_body={"training": GIVEN}
    )
    extra = job.model_extra or {}
    assert extra["training"] == GIVEN
    assert job.hyperparameters.learning_rate_multiplier == 0.5, "of the base's rate"
    train = JobSpec.model_validate(get_job(database, job.id).spec).train
    assert train.model_dump(mode="json") == DEFAULT.train.model_dump(mode="json") | GIVEN | {"seed": job.seed}
    clone = openai_client.post(f"/fine_tuning/jobs/{job.id}/retry", cast_to=FineTuningJob)
    assert get_job(database, clone.id).spec == get_job(database, job.id).spec
    assert (clone.model_extra or {})["training"] == GIVEN


async def _refused_by_name(client: AsyncOpenAI, training_file: str) -> Any:
    with pytest.raises(BadRequestError) as caught:
        await client.fine_tuning.jobs.create(
            model=BASE_ID, training_file=training_file, extra_body={"training": {"epochs": 3}}
        )
    return caught.value.param, caught.value.code


@sqlite_only
def test_an_unknown_field_with_the_asynchronous_client(
    api_url: str, tenant: Tenant, files: tuple[str, str]
) -> None:
    import asyncio

    async def run() -> Any:
        async with AsyncOpenAI(
            base_url=api_url, api_key=tenant.key, max_retries=0, _strict_response_validation=True
        ) as client:
            return await _refused_by_name(client, files[0])

    assert asyncio.run(run()) == ("training.epochs", "unknown_parameter")


@sqlite_only
def test_what_is_not_given_is_the_base_s(create: Any, database: Database) -> None:
    job = create({"packing": True})
    train = JobSpec.model_validate(get_job(database, job["id"]).spec).train
    assert train == DEFAULT.train.model_copy(update={"packing": True, "seed": job["seed"]})
    assert job["hyperparameters"]["learning_rate_multiplier"] == 1.0
    for nothing in ({}, None):
        assert create(nothing)["training"]["learning_rate"] == 0.002
    halved = create({}, hyperparameters={"learning_rate_multiplier": 0.5})
    assert halved["training"]["learning_rate"] == 0.001


@sqlite_only
def test_evaluations_may_stand_in_early_stopping(create: Any) -> None:
    shown = create({"early_stopping": {"patience": 1, "evaluations_per_epoch": 5}})["training"]
    assert shown["evaluations_per_epoch"] == 5
    assert shown["early_stopping"] == {"patience": 1, "min_delta": 0.0}


@sqlite_only
@pytest.mark.parametrize(
    ("training", "param", "code"),
    [
        ({"rate": 1}, "rate", "unknown_parameter"),
        ({"micro_batch_tokens": 64}, "micro_batch_tokens", "unknown_parameter"),
        ({"n_epochs": 3}, "n_epochs", "unknown_parameter"),
        ({"seed": 3}, "seed", "unknown_parameter"),
        ({"learning_rate": 0}, "learning_rate", "invalid_value"),
        ({"learning_rate": 1.5}, "learning_rate", "invalid_value"),
        ({"learning_rate": "0.1"}, "learning_rate", "invalid_value"),
        ({"learning_rate": None}, "learning_rate", "invalid_value"),
        ({"schedule": "step"}, "schedule", "invalid_value"),
        ({"warmup_ratio": 1.1}, "warmup_ratio", "invalid_value"),
        ({"weight_decay": -1}, "weight_decay", "invalid_value"),
        ({"max_grad_norm": 0}, "max_grad_norm", "invalid_value"),
        ({"max_seq_length": 7}, "max_seq_length", "invalid_value"),
        ({"max_seq_length": 2**20 + 1}, "max_seq_length", "invalid_value"),
        ({"max_seq_length": 64.5}, "max_seq_length", "invalid_value"),
        ({"max_seq_length": True}, "max_seq_length", "invalid_value"),
        ({"too_long": "cut"}, "too_long", "invalid_value"),
        ({"packing": "no"}, "packing", "invalid_value"),
        ({"packing": 1}, "packing", "invalid_value"),
        ({"train_on_inputs": None}, "train_on_inputs", "invalid_value"),
        ({"evaluations_per_epoch": 0}, "evaluations_per_epoch", "invalid_value"),
        ({"evaluations_per_epoch": 21}, "evaluations_per_epoch", "invalid_value"),
        ({"early_stopping": True}, "early_stopping", "invalid_value"),
        ({"early_stopping": {}}, "early_stopping.patience", "invalid_value"),
        ({"early_stopping": {"patience": 0}}, "early_stopping.patience", "invalid_value"),
        ({"early_stopping": {"patience": 1, "min_delta": -1}}, "early_stopping.min_delta", "invalid_value"),
        ({"early_stopping": {"patience": 1, "delta": 1}}, "early_stopping.delta", "unknown_parameter"),
        (
            {"evaluations_per_epoch": 2, "early_stopping": {"patience": 1, "evaluations_per_epoch": 3}},
            "early_stopping.evaluations_per_epoch",
            "invalid_value",
        ),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_by_name(
    create: Any, training: dict[str, Any], param: str, code: str
) -> None:
    error = create(training, status=400)
    assert (error["param"], error["code"]) == (f"training.{param}", code)


@sqlite_only
@pytest.mark.parametrize("number", ["Infinity", "NaN", "1e999"])
@pytest.mark.parametrize("field", ["weight_decay", "max_grad_norm", "learning_rate", "warmup_ratio"])
def test_numbers_that_json_does_not_have(
    client: TestClient, tenant: Tenant, files: tuple[str, str], field: str, number: str
) -> None:
    body = f'{{"model": "{BASE_ID}", "training_file": "{files[0]}", "training": {{"{field}": {number}}}}}'
    headers = {**tenant.headers, "content-type": "application/json"}
    answer = client.post("/fine_tuning/jobs", content=body, headers=headers)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] in (f"training.{field}", None)


@sqlite_only
def test_two_ways_to_say_how_fast_to_learn(create: Any) -> None:
    for multiplier in (2.0, 1.0):
        error = create({"learning_rate": 1e-3}, 400, hyperparameters={"learning_rate_multiplier": multiplier})
        assert error["param"] == "training.learning_rate"
    job = create({"learning_rate": 1e-3}, hyperparameters={"learning_rate_multiplier": "auto"})
    assert job["training"]["learning_rate"] == 1e-3


@sqlite_only
def test_early_stopping_needs_a_validation_file(create: Any, database: Database) -> None:
    error = create({"early_stopping": {"patience": 1}}, 400, validation_file=None)
    assert (error["param"], error["code"]) == ("training.early_stopping", "invalid_value")
    assert "validation_file" in error["message"]
    with database.transaction() as session:
        base = session.get_one(AlignedBase, BASE_ID)
        stopping = DEFAULT.train.model_copy(update={"early_stopping": EarlyStopping(patience=2)})
        base.default_spec = DEFAULT.model_copy(update={"train": stopping}).model_dump(mode="json")
    assert create({}, validation_file=None)["training"]["early_stopping"] is None
    assert create({})["training"]["early_stopping"] == {"patience": 2, "min_delta": 0.0}
    off = create({"early_stopping": None})
    assert off["training"]["early_stopping"] is None


@sqlite_only
def test_a_clone_keeps_what_was_switched_off(
    create: Any, client: TestClient, tenant: Tenant, database: Database
) -> None:
    with database.transaction() as session:
        base = session.get_one(AlignedBase, BASE_ID)
        stopping = DEFAULT.train.model_copy(update={"early_stopping": EarlyStopping(patience=2)})
        base.default_spec = DEFAULT.model_copy(update={"train": stopping}).model_dump(mode="json")
    job = create({"early_stopping": None})
    url = f"/fine_tuning/jobs/{job['id']}/retry"
    assert client.post(url, headers=tenant.headers).json()["training"]["early_stopping"] is None
    changed = client.post(url, json={"training": {"packing": True}}, headers=tenant.headers).json()
    assert changed["training"]["packing"]
    error = client.post(url, json={"training": {"packin": True}}, headers=tenant.headers).json()["error"]
    assert error["param"] == "training.packin"


@sqlite_only
def test_jobs_older_than_a_field_show_its_default(
    client: TestClient, database: Database, tenant: Tenant
) -> None:
    with database.transaction() as session:
        job = make_job(session, tenant.project_id)
        spec = dict(job.spec)
        old = {k: v for k, v in spec["train"].items() if k not in ("packing", "early_stopping")}
        job.spec = spec | {"train": old}
        job_id = job.id
    shown = client.get(f"/fine_tuning/jobs/{job_id}", headers=tenant.headers).json()
    assert (shown["training"]["packing"], shown["training"]["early_stopping"]) == (False, None)


@sqlite_only
def test_what_training_led_to_is_shown(client: TestClient, database: Database, tenant: Tenant) -> None:
    output = {
        "steps": 8,
        "planned_steps": 20,
        "early_stopped": True,
        "best_step": 6,
        "best_valid_loss": 1.5,
        "micro_batch_tokens": 512,
        "activation_checkpointing": True,
        "estimated_memory_bytes": 3_000_000,
        "peak_memory_bytes": 2_000_000,
    }
    with database.transaction() as session:
        job_id = make_job(session, tenant.project_id).id
        session.get_one(Job, job_id).stage_outputs = {"train": output | {"prefix": "private/x"}}
    shown = client.get(f"/fine_tuning/jobs/{job_id}", headers=tenant.headers).json()
    assert shown["training_result"] == output
