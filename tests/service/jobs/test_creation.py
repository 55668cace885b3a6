"""Creating a job over HTTP: what is resolved, what is written together, what is refused and how."""

from __future__ import annotations

import time
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from sqlalchemy import func, select

from autoclave.spec import JobSpec, LoraSpec, TrainSpec
from service import outbox
from service.catalog import retire_base
from service.db import Database
from service.jobs.requests import CreateJob
from service.models import Job, JobEvent, OutboxMessage
from tests.builders import BASE_ID, Tenant, get_job, make_base, make_file

sqlite_only = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
DEFAULT = JobSpec(
    lora=LoraSpec(r=8, target_modules=("q_proj",)),
    train=TrainSpec(n_epochs=4, batch_size=6, learning_rate=0.002, warmup_ratio=0.5),
)


@pytest.fixture
def files(database: Database, tenant: Tenant) -> tuple[str, str]:
    """A training and a validation file, and the base."""
    with database.transaction() as session:
        make_base(session, default_spec=DEFAULT)
        return make_file(session, tenant.project_id).id, make_file(session, tenant.project_id).id


def create(client: TestClient, tenant: Tenant, files: tuple[str, str], **body: Any) -> httpx.Response:
    return client.post(
        "/fine_tuning/jobs",
        json={"model": BASE_ID, "training_file": files[0], **body},
        headers=tenant.headers,
    )


def num_rows(database: Database) -> int:
    with database.snapshot() as session:
        return sum(
            session.scalar(select(func.count()).select_from(table)) or 0
            for table in (Job, JobEvent, OutboxMessage)
        )


def test_a_job_is_queued_with_its_events_and_its_doorbell(
    client: TestClient, database: Database, tenant: Tenant, files: tuple[str, str]
) -> None:
    started = time.time()
    answer = create(
        client, tenant, files, validation_file=files[1], suffix="mine", seed=7, metadata={"team": "a"}
    )
    assert answer.status_code == 200, answer.text
    wire = answer.json()
    hyperparameters = {"n_epochs": 4, "batch_size": 6, "learning_rate_multiplier": 1.0}
    assert started - 1 <= wire.pop("created_at") <= time.time()
    assert wire == {
        "id": wire["id"],
        "object": "fine_tuning.job",
        "model": BASE_ID,
        "organization_id": tenant.organization_id,
        "status": "queued",
        "stage": "prepare",
        "training_file": files[0],
        "validation_file": files[1],
        "hyperparameters": hyperparameters,
        "method": {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}},
        "seed": 7,
        "metadata": {"team": "a"},
        "user_provided_suffix": "mine",
        "result_files": [],
        "integrations": [],
        "error": None,
        "estimated_finish": None,
        "finished_at": None,
        "fine_tuned_model": None,
        "adapter_expires_at": None,
        "adapter_deleted_at": None,
        "trained_tokens": None,
        "attempts": 0,
        "cancel_requested": False,
        "queue_position": 1,
        "waiting_for": {
            "reason": "no_worker",
            "message": "No worker of this server is there now; the job starts when one comes.",
        },
        "cloned_from": None,
        "from_checkpoint": None,
        "gate_waived": None,
        "error_kind": None,
        "pause_requested": False,
        "paused_at": None,
        "progress": None,
        "safety": None,
        "base": {"model": BASE_ID, "revision": "1", "sha256": "b" * 64},
        "lora": {"r": 8, "lora_alpha": 32.0, "lora_dropout": 0.0, "target_modules": ["q_proj"]},
        "training": {
            "learning_rate": 0.002,
            "schedule": "cosine",
            "warmup_ratio": 0.5,
            "weight_decay": 0.0,
            "max_grad_norm": 1.0,
            "max_seq_length": 2048,
            "too_long": "truncate",
            "packing": False,
            "train_on_inputs": False,
            "evaluations_per_epoch": 1,
            "early_stopping": None,
            "activation_checkpointing": "auto",
        },
        "defence": {"name": "sft"},
        "training_result": None,
    }
    job = get_job(database, wire["id"])
    assert JobSpec.model_validate(job.spec) == JobSpec(
        lora=DEFAULT.lora, train=DEFAULT.train.model_copy(update={"seed": 7})
    )
    with database.snapshot() as session:
        messages = session.scalars(select(JobEvent.message).order_by(JobEvent.sequence)).all()
        doorbells = session.scalars(select(OutboxMessage.job_id)).all()
    assert messages == [
        f"Created fine-tuning job: {job.id}",
        "Files validated, moving job to queued state",
    ]
    assert doorbells == [job.id]
    assert job.rung_at == job.created_at


def test_job_events_and_doorbell_are_one_transaction(
    client: TestClient,
    database: Database,
    tenant: Tenant,
    files: tuple[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("power cut")

    monkeypatch.setattr(outbox, "enqueue", broken)
    assert create(client, tenant, files).status_code == 500
    assert num_rows(database) == 0


@sqlite_only
class TestHyperparameters:
    @pytest.mark.parametrize(
        "body",
        [
            {"hyperparameters": {"n_epochs": 2, "learning_rate_multiplier": 0.5}},
            {
                "method": {
                    "type": "supervised",
                    "supervised": {"hyperparameters": {"n_epochs": 2, "learning_rate_multiplier": 0.5}},
                }
            },
            {
                "hyperparameters": {"n_epochs": 2, "batch_size": "auto", "learning_rate_multiplier": None},
                "method": {
                    "type": "supervised",
                    "supervised": {"hyperparameters": {"n_epochs": 2, "learning_rate_multiplier": 0.5}},
                    "dpo": {"hyperparameters": {"beta": "auto"}},
                    "reinforcement": {"grader": {"type": "string_check"}},
                },
            },
        ],
        ids=["deprecated", "method", "both, with unused methods"],
    )
    def test_old_and_new_form_mean_the_same(
        self,
        client: TestClient,
        database: Database,
        tenant: Tenant,
        files: tuple[str, str],
        body: dict[str, Any],
    ) -> None:
        wire = create(client, tenant, files, **body).json()
        assert wire["hyperparameters"] == {
            "n_epochs": 2,
            "batch_size": 6,
            "learning_rate_multiplier": 0.5,
        }
        train = JobSpec.model_validate(get_job(database, wire["id"]).spec).train
        assert (train.n_epochs, train.batch_size, train.learning_rate) == (2, 6, 0.001)
        assert train.warmup_ratio == 0.5, "what a client cannot set stays the base's"

    def test_forms_that_disagree_are_refused(
        self, client: TestClient, tenant: Tenant, files: tuple[str, str]
    ) -> None:
        method = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 3}}}
        answer = create(client, tenant, files, method=method, hyperparameters={"n_epochs": 2})
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == "hyperparameters.n_epochs"

    def test_the_adapter_shape_can_be_chosen(
        self, client: TestClient, database: Database, tenant: Tenant, files: tuple[str, str]
    ) -> None:
        wire = create(client, tenant, files, lora={"r": 4, "target_modules": "all-linear"}).json()
        expected = {"r": 4, "lora_alpha": 32.0, "lora_dropout": 0.0, "target_modules": "all-linear"}
        assert wire["lora"] == expected
        assert get_job(database, wire["id"]).spec["lora"] == expected

    def test_a_seed_is_drawn_and_shown(
        self, client: TestClient, database: Database, tenant: Tenant, files: tuple[str, str]
    ) -> None:
        jobs = [create(client, tenant, files).json() for _ in range(3)]
        assert len({job["seed"] for job in jobs}) == 3
        assert get_job(database, jobs[0]["id"]).spec["train"]["seed"] == jobs[0]["seed"]


@sqlite_only
@pytest.mark.parametrize(
    ("body", "status", "param", "code"),
    [
        ({"model": "gpt-x"}, 404, "model", "model_not_found"),
        ({"training_file": "file-x"}, 404, "training_file", "file_not_found"),
        ({"validation_file": "file-x"}, 404, "validation_file", "file_not_found"),
        ({"method": {"type": "dpo", "dpo": {}}}, 400, "method.type", "unsupported_method"),
        ({"method": {"type": "supervised", "sft": {}}}, 400, "method.sft", "unknown_parameter"),
        ({"hyperparameters": {"n_epochs": 0}}, 400, "hyperparameters.n_epochs", "invalid_value"),
        ({"hyperparameters": {"n_epochs": 51}}, 400, "hyperparameters.n_epochs", "invalid_value"),
        ({"hyperparameters": {"n_epochs": True}}, 400, "hyperparameters.n_epochs", "invalid_value"),
        ({"hyperparameters": {"n_epochs": "3"}}, 400, "hyperparameters.n_epochs", "invalid_value"),
        ({"hyperparameters": {"batch_size": 257}}, 400, "hyperparameters.batch_size", "invalid_value"),
        (
            {"hyperparameters": {"learning_rate_multiplier": 0}},
            400,
            "hyperparameters.learning_rate_multiplier",
            "invalid_value",
        ),
        (
            {"hyperparameters": {"learning_rate_multiplier": 501}},
            400,
            "method.supervised.hyperparameters.learning_rate_multiplier",
            "invalid_value",
        ),
        ({"hyperparameters": {"epochs": 3}}, 400, "hyperparameters.epochs", "unknown_parameter"),
        ({"lora": {"r": 513}}, 400, "lora.r", "invalid_value"),
        ({"lora": {"rank": 8}}, 400, "lora.rank", "unknown_parameter"),
        ({"suffix": ""}, 400, "suffix", "invalid_value"),
        ({"suffix": "a/b"}, 400, "suffix", "invalid_value"),
        ({"suffix": "x" * 65}, 400, "suffix", "invalid_value"),
        ({"seed": -1}, 400, "seed", "invalid_value"),
        ({"seed": 2**31}, 400, "seed", "invalid_value"),
        ({"seed": "1"}, 400, "seed", "invalid_value"),
        ({"metadata": {"a": 1}}, 400, "metadata.a", "invalid_value"),
        ({"metadata": {"a": "x" * 513}}, 400, "metadata.a", "invalid_value"),
        ({"metadata": {"a": "\0"}}, 400, "metadata.a", "invalid_value"),
        ({"metadata": {str(i): "" for i in range(17)}}, 400, "metadata", "invalid_value"),
        (
            {"integrations": [{"type": "wandb", "wandb": {"project": "p"}}]},
            400,
            "integrations",
            "integration_not_configured",
        ),
        ({"status": "succeeded"}, 400, "status", "unknown_parameter"),
    ],
    ids=lambda value: str(value)[:50] if isinstance(value, dict) else "",
)
def test_what_cannot_work_is_refused_by_name(
    client: TestClient,
    database: Database,
    tenant: Tenant,
    files: tuple[str, str],
    body: dict[str, Any],
    status: int,
    param: str,
    code: str,
) -> None:
    answer = create(client, tenant, files, **body)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert (error["param"], error["code"]) == (param, code)
    assert num_rows(database) == 0


@sqlite_only
def test_a_retired_base_takes_no_new_jobs(
    client: TestClient, database: Database, tenant: Tenant, files: tuple[str, str]
) -> None:
    with database.transaction() as session:
        retire_base(session, BASE_ID, now=1.0)
    assert create(client, tenant, files).status_code == 404


@sqlite_only
def test_files_that_do_not_fit_are_refused(
    client: TestClient, database: Database, tenant: Tenant, files: tuple[str, str]
) -> None:
    with database.transaction() as session:
        result = make_file(session, tenant.project_id, purpose="fine-tune-results").id
        deleted = make_file(session, tenant.project_id, deleted_at=1.0).id
        twins = [make_file(session, tenant.project_id, sha256="a" * 64).id for _ in range(2)]
    for body, status, param in (
        ({"training_file": result}, 400, "training_file"),
        ({"training_file": deleted}, 404, "training_file"),
        ({"validation_file": files[0]}, 400, "validation_file"),
        ({"training_file": twins[0], "validation_file": twins[1]}, 400, "validation_file"),
    ):
        answer = create(client, tenant, files, **body)
        assert (answer.status_code, answer.json()["error"]["param"]) == (status, param), answer.text


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(
    body=st.fixed_dictionaries(
        {"model": st.just("m"), "training_file": st.just("f")},
        optional={name: JSON for name in CreateJob.model_fields if name not in ("model", "training_file")},
    )
)
def test_any_json_is_a_request_or_a_validation_error(body: dict[str, Any]) -> None:
    try:
        request = CreateJob.model_validate(body)
    except ValidationError:
        return
    for name in body:
        assert name in request.model_fields_set
