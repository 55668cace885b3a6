"""What a job is said to take: counts as training would, speeds that were measured, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from transformers import AutoTokenizer

from autoclave.data.conversations import read_conversations
from autoclave.hashing import folder_sha256
from service.db import Database
from service.models import AlignedBase, Job
from tests.builders import Tenant, chat_line, make_job
from tests.service.datasets.conftest import BASE, BENIGN, lines


def test_estimate_counts_what_training_would_do(
    post: Any, store: Any, base: str, database: Database, tenant: Tenant
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(BASE, local_files_only=True)
    from autoclave.data.tokens import encode

    encoded = encode(tokenizer, read_conversations(BENIGN), max_seq_length=2048)
    num_tokens = sum(len(example) for example in encoded.examples)
    num_trained = sum(int((e.labels[1:] != -100).sum()) for e in encoded.examples)
    body = {
        "model": base,
        "training_file": store(BENIGN.read_bytes()),
        "hyperparameters": {"n_epochs": 2, "batch_size": 7},
        "lora": {"r": 4},
    }
    answer = post("estimate", **body)
    assert answer["object"] == "fine_tuning.estimate"
    assert (answer["n_epochs"], answer["batch_size"]) == (2, 7)
    assert answer["steps"] == 2 * -(-len(encoded.examples) // 7)
    assert answer["tokens_per_epoch"] == num_tokens
    assert answer["trained_tokens"] == 2 * num_trained
    assert answer["complete"]
    assert answer["train_seconds"] is None
    memory = answer["memory_bytes"]["cpu"]
    assert memory["total"] == sum(value for part, value in memory.items() if part != "total")
    smaller = post("estimate", **{**body, "lora": {"r": 2}})["memory_bytes"]["cpu"]
    assert smaller["adapter"] * 2 == memory["adapter"]

    def finished(seconds: float, **overrides: Any) -> None:
        with database.transaction() as session:
            make_job(
                session,
                tenant.project_id,
                **{
                    "base_id": base,
                    "status": "succeeded",
                    "stage": "publish",
                    "finished_at": 1.0,
                    "hyperparameters": {"n_epochs": 1, "batch_size": 7, "learning_rate_multiplier": 1},
                    "stage_outputs": {"prepare": {"num_tokens": 1000}, "train": {"seconds": seconds}},
                    **overrides,
                },
            )

    finished(100.0, status="failed")
    finished(100.0, base_sha256="f" * 64)
    finished(100.0, stage_outputs={})
    assert post("estimate", **body)["train_seconds"] is None
    for seconds in (1.0, 2.0, 4.0):
        finished(seconds)
    speed = post("estimate", **body)["train_seconds"]
    thousands = 2 * num_tokens / 1000
    assert speed["num_jobs"] == 3
    assert [speed[name] / thousands for name in ("fastest", "median", "slowest")] == pytest.approx([1, 2, 4])


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_estimate_refuses_what_creating_refuses(post: Any, store: Any, base: str) -> None:
    file = store(lines(*"abcdefghijkl"))
    for extra, param in (
        ({"hyperparameters": {"n_epochs": 99}}, "hyperparameters.n_epochs"),
        ({"lora": {"rank": 3}}, "lora.rank"),
        ({"method": {"type": "dpo"}}, "method.type"),
        ({"colour": 1}, "colour"),
    ):
        assert post("estimate", 400, model=base, training_file=file, **extra)["param"] == param
    answer = post("estimate", model=base, training_file=file, lora={"target_modules": ["nothing"]})
    assert answer["memory_bytes"] is None
    assert "target_modules" in answer["memory_unavailable"]


def test_speed_is_that_of_the_steps_taken(
    post: Any, store: Any, base: str, database: Database, tenant: Tenant
) -> None:
    """A job that stopped early did not go through all of its epochs."""
    file = store(lines("a", "b"))
    sha256 = folder_sha256(BASE)
    with database.transaction() as session:
        make_job(
            session,
            tenant.project_id,
            base_sha256=sha256,
            status="succeeded",
            finished_at=1.0,
            stage_outputs={
                "prepare": {"num_tokens": 100},
                "train": {"seconds": 6.0, "steps": 2, "planned_steps": 10},
            },
            hyperparameters={"n_epochs": 5},
        )
    estimate = post("estimate", training_file=file, model=base)
    expected = 6.0 / 100 * estimate["tokens_per_epoch"] * estimate["n_epochs"]
    assert estimate["train_seconds"]["median"] == pytest.approx(expected)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_estimate_knows_what_a_defence_costs(
    post: Any, store: Any, base: str, database: Database, tenant: Tenant
) -> None:
    body = {"training_file": store(lines(*map(str, range(12)))), "model": base}
    body["hyperparameters"] = {"n_epochs": 2, "batch_size": 4}
    outputs = {"prepare": {"num_tokens": 1000, "num_examples": 70}, "train": {"seconds": 2.0}}
    finished = {
        "base_id": base,
        "status": "succeeded",
        "stage": "publish",
        "finished_at": 1.0,
        "hyperparameters": {"n_epochs": 1, "batch_size": 7, "learning_rate_multiplier": 1},
    }
    with database.transaction() as session:
        make_job(session, tenant.project_id, stage_outputs=outputs, **finished)
    plain = post("estimate", **body)
    lisa = {"name": "lisa", "alignment_steps": 3, "finetune_steps": 4}
    found = {
        name: post("estimate", **body, defence=d)
        for name, d in (("lisa", lisa), ("ldifs", {"name": "ldifs"}))
    }
    assert (plain["steps"], plain["defence"], plain["relative_cost"]) == (6, "sft", 1.0)
    assert (found["lisa"]["steps"], found["lisa"]["relative_cost"]) == (12, 2.0)
    assert (found["ldifs"]["steps"], found["ldifs"]["relative_cost"]) == (6, 1.5)
    for answer in found.values():
        seconds = plain["train_seconds"]["median"] * answer["relative_cost"]
        assert answer["train_seconds"]["median"] == pytest.approx(seconds)
        assert answer["trained_tokens"] == plain["trained_tokens"]
        memory = answer["memory_bytes"]["cuda"]
        assert memory["defence"] > 0 == plain["memory_bytes"]["cuda"]["defence"]
        assert memory["total"] == sum(value for part, value in memory.items() if part != "total")

    # A job that had the defence took as long as it costs: what it says about plain training is the same.
    with database.transaction() as session:
        for job in session.scalars(select(Job)):
            job.spec = job.spec | {"defence": {"name": "ldifs"}}
    again = post("estimate", **body)["train_seconds"]["median"]
    assert again == pytest.approx(plain["train_seconds"]["median"] / 1.5)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_estimate_counts_the_rows_of_the_alignment_data(
    post: Any, store: Any, base: str, database: Database, tmp_path: Path
) -> None:
    body = {"training_file": store(lines(*map(str, range(12)))), "model": base}
    body |= {"defence": {"name": "lisa"}, "training": {"max_seq_length": 64}}

    def activations(rows: str | None) -> int:
        file = tmp_path / "alignment.jsonl"
        if rows is not None:
            file.write_text(rows)
        with database.transaction() as session:
            (registered,) = session.scalars(select(AlignedBase))
            path = file if rows is not None else tmp_path / "elsewhere.jsonl"
            registered.safety_profile = {**registered.safety_profile, "alignment": str(path)}
        found: int = post("estimate", **body)["memory_bytes"]["cuda"]["activations"]
        return found

    short, longer, longest = (
        activations(chat_line("a", " ".join(["yes"] * count)) + "\n") for count in (1, 20, 40)
    )
    plain = post("estimate", **{**body, "defence": {"name": "sft"}})["memory_bytes"]["cuda"]["activations"]
    assert plain <= short < longer < longest
    assert activations(None) > longest, "a file that only workers have: as long as it may be"
    assert activations("no JSON\n") > longest
