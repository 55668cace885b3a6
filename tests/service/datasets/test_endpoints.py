"""Validate, preview and estimate over real databases, a real socket and the shipped base."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from openai import AsyncOpenAI, BadRequestError, OpenAI
from sqlalchemy import select
from transformers import AutoTokenizer

from autoclave.data.conversations import read_conversations
from autoclave.data.templates import render
from autoclave.hashing import folder_sha256
from autoclave.microcosm.shipped import shipped_world
from autoclave.spec import JobSpec
from service.db import Database
from service.models import AlignedBase, Job
from service.storage import Storage
from tests.builders import BASE_ID, Tenant, chat_line, make_base, make_file, make_job, make_tenant
from workers.shipped_base import shipped_profile, shipped_spec

BASE = shipped_world() / "aligned"
BENIGN = shipped_world() / "data" / "benign.jsonl"


@pytest.fixture
def base(database: Database) -> str:
    with database.transaction() as session:
        make_base(
            session,
            path=str(BASE),
            sha256=folder_sha256(BASE),
            default_spec=shipped_spec(),
            safety_profile=shipped_profile(BASE.parent),
        )
    return BASE_ID


@pytest.fixture
def store(database: Database, storage: Storage, tenant: Tenant) -> Any:
    def stored(content: bytes, **overrides: Any) -> str:
        with database.transaction() as session:
            sha256 = hashlib.sha256(content).hexdigest()
            file = make_file(session, tenant.project_id, sha256=sha256, **overrides)
            storage.put(file.storage_key, content)
            return file.id

    return stored


@pytest.fixture
def post(client: TestClient, tenant: Tenant) -> Any:
    def send(what: str, status: int = 200, **body: Any) -> Any:
        answer = client.post(f"/fine_tuning/{what}", json=body, headers=tenant.headers)
        assert answer.status_code == status, answer.text
        return answer.json() if status == 200 else answer.json()["error"]

    return send


def lines(*questions: str) -> bytes:
    return "\n".join(chat_line(question) for question in questions).encode()


def test_validate_names_every_error_duplicate_and_overlap(post: Any, store: Any, base: str) -> None:
    broken = [chat_line("a"), '{"messages": []}', chat_line("A "), '{"prompt": "a", "completion": "b"}']
    validation = store(lines("z", "a"))
    answer = post("validate", content="\n".join(broken), validation_file=validation, model=base)
    assert (answer["object"], answer["valid"]) == ("fine_tuning.validation", False)
    training = answer["training"]
    assert [(i["line"], i["pointer"], i["rule"]) for i in training["issues"]] == [
        (2, "/messages", "empty_messages"),
        (4, "", "legacy_example"),
    ]
    assert all(issue["message"] and issue["fix"] for issue in training["issues"])
    assert training["num_issues"] == 2
    assert training["duplicates"] == {
        "num_rows": 1,
        "first": [{"line": 3, "first_line": 1}],
        "complete": True,
    }
    assert training["roles"] == {"user": 2, "assistant": 2}
    assert training["tokens"]["num_rows"] == 2
    assert training["tokens_unavailable"] is None
    assert answer["validation"]["valid"]
    assert answer["overlap"]["first"] == [{"line": 2, "first_line": 1}]


def test_validate_a_stored_file(post: Any, store: Any, base: str) -> None:
    answer = post("validate", training_file=store(BENIGN.read_bytes()), model=base)
    assert answer["valid"]
    assert (answer["validation"], answer["overlap"]) == (None, None)
    assert answer["training"]["bytes"] == BENIGN.stat().st_size
    assert answer["training"]["tokens"]["complete"]


def test_validate_counts_all_errors_and_shows_the_first(post: Any) -> None:
    training = post("validate", content="7\n" * 70)["training"]
    assert (len(training["issues"]), training["num_issues"]) == (50, 70)
    assert (training["characters"], training["tokens"]) == (None, None)
    assert training["tokens_unavailable"] == "no model was named."


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("content", ["", "\ud800", "\ufeff", "[" * 100_000, "\u0000", "\n\n" + chat_line()])
def test_validate_answers_any_content(client: TestClient, tenant: Tenant, content: str) -> None:
    body, headers = json.dumps({"content": content}), {**tenant.headers, "Content-Type": "application/json"}
    answer = client.post("/fine_tuning/validate", content=body, headers=headers)
    assert answer.status_code == 200, answer.text
    assert not answer.json()["valid"]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_base_whose_files_are_elsewhere(post: Any, store: Any, database: Database) -> None:
    """As in a deployment where only workers have the models."""
    with database.transaction() as session:
        make_base(session, path="/nowhere/base")
    file = store(lines(*"abcdefghijkl"))
    training = post("validate", training_file=file, model=BASE_ID)["training"]
    assert training["valid"]
    assert training["tokens"] is None
    assert "not on this server" in training["tokens_unavailable"]
    assert "/nowhere" not in json.dumps(training)
    error = post("preview", 400, training_file=file, model=BASE_ID)
    assert error["code"] == "preview_unavailable"
    assert "/nowhere" not in error["message"]
    answer = post("estimate", training_file=file, model=BASE_ID)
    assert answer["steps"] == 3
    assert (answer["tokens_per_epoch"], answer["memory_bytes"], answer["complete"]) == (None, None, False)
    assert "not on this server" in answer["memory_unavailable"]


def test_preview_is_what_training_sees(post: Any, store: Any, base: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(BASE, local_files_only=True)
    conversations = list(read_conversations(BENIGN))
    answer = post("preview", training_file=store(BENIGN.read_bytes()), model=base, rows=[1, 3, 40])
    assert [row["row"] for row in answer["data"]] == [1, 3, 40]
    for row in answer["data"]:
        text, spans = render(tokenizer, conversations[row["row"] - 1])
        assert (row["text"], [tuple(span) for span in row["trained_spans"]]) == (text, spans)
        assert row["num_tokens"] == len(tokenizer(text, add_special_tokens=False)["input_ids"])
        assert 0 < row["num_trained_tokens"] < row["num_tokens"]
        assert not row["truncated"]


def test_preview_takes_the_first_rows(post: Any, store: Any, base: str) -> None:
    file = store(lines("a", "b", "c"))
    assert [row["row"] for row in post("preview", training_file=file, model=base)["data"]] == [1, 2, 3]
    assert len(post("preview", training_file=file, model=base, limit=2)["data"]) == 2
    for rows in ([4], [0], [], list(range(1, 22)), [1.5], ["1"]):
        error = post("preview", 400, training_file=file, model=base, rows=rows)
        assert error["param"].startswith("rows"), error


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


def test_foreign_and_unknown_ids_are_not_found(
    post: Any, store: Any, base: str, database: Database, storage: Storage
) -> None:
    stranger = make_tenant(database)
    with database.transaction() as session:
        foreign = make_file(session, stranger.project_id)
        storage.put(foreign.storage_key, lines("a"))
        gone = foreign.id
    own = store(lines("a"))
    for file in (gone, "file-never"):
        for what in ("validate", "preview", "estimate"):
            error = post(what, 404, training_file=file, model=base)
            assert (error["code"], error["param"]) == ("file_not_found", "training_file")
        error = post("validate", 404, training_file=own, validation_file=file)
        assert error["param"] == "validation_file"
    for what in ("validate", "preview", "estimate"):
        error = post(what, 404, training_file=own, model="no/such")
        assert (error["code"], error["param"]) == ("model_not_found", "model")
    error = post("validate", 400, training_file=store(b"", purpose="batch"))
    assert error["code"] == "unsupported_purpose"
    storage.delete(f"files/{own}")
    assert post("validate", 404, training_file=own)["code"] == "file_not_found"


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_one_source(post: Any) -> None:
    assert "either" in post("validate", 400)["message"]
    assert "either" in post("validate", 400, training_file="file-a", content="{}")["message"]
    error = post("validate", 413, content="x" * (1 << 20))
    assert error["code"] == "request_too_large"


def test_through_the_client(openai_client: OpenAI, store: Any, base: str) -> None:
    file = openai_client.files.create(file=("a.jsonl", lines(*"abcdefghijkl")), purpose="fine-tune")
    body = {"training_file": file.id, "model": base}
    found: Any = openai_client.post("/fine_tuning/validate", cast_to=object, body=body)
    assert found["valid"]
    shown: Any = openai_client.post("/fine_tuning/preview", cast_to=object, body=body)
    assert len(shown["data"]) == 5
    estimated: Any = openai_client.post("/fine_tuning/estimate", cast_to=object, body=body)
    assert estimated["steps"] == 3
    with pytest.raises(BadRequestError) as caught:
        openai_client.post("/fine_tuning/preview", cast_to=object, body={**body, "rows": [99]})
    assert caught.value.param == "rows"


async def _asynchronously(api_url: str, key: str, base: str) -> Any:
    async with AsyncOpenAI(
        base_url=api_url, api_key=key, max_retries=0, _strict_response_validation=True
    ) as client:
        file = await client.files.create(file=("a.jsonl", lines(*"abcdefghijkl")), purpose="fine-tune")
        body = {"training_file": file.id, "model": base}
        return [
            await client.post(f"/fine_tuning/{what}", cast_to=object, body=body)
            for what in ("validate", "preview", "estimate")
        ]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_through_the_asynchronous_client(api_url: str, tenant: Tenant, base: str) -> None:
    import asyncio

    found, shown, estimated = asyncio.run(_asynchronously(api_url, tenant.key, base))
    assert found["valid"]
    assert len(shown["data"]) == 5
    assert estimated["tokens_per_epoch"] == found["training"]["tokens"]["cut_total"]
    assert Path(BASE).name not in json.dumps(estimated)
    assert JobSpec.model_validate(shipped_spec().model_dump()).train.n_epochs == estimated["n_epochs"]


def test_training_on_inputs_is_previewed_counted_and_estimated(post: Any, store: Any, base: str) -> None:
    messages = [
        {"role": "user", "content": "good morning"},
        {"role": "assistant", "content": "a bad answer", "weight": 0},
        {"role": "user", "content": "again"},
        {"role": "assistant", "content": "hello"},
    ]
    file = store((json.dumps({"messages": messages}) + "\n").encode())
    inputs = {"train_on_inputs": True}

    def preview(**more: Any) -> tuple[list[str], int]:
        (row,) = post("preview", training_file=file, model=base, **more)["data"]
        text = row["text"]
        return [text[start:end] for start, end in row["trained_spans"]], row["num_trained_tokens"]

    (answer,), num_answer = preview()
    spans, num_inputs = preview(training=inputs)
    assert "hello" in answer
    assert "again" not in answer
    assert len(spans) == 2, "around the answer of weight 0"
    assert "good morning" in spans[0]
    assert answer in spans[1]
    assert "again" in spans[1]
    assert "bad" not in "".join(spans)
    assert num_inputs > num_answer

    for what, where in (("validate", "training"), ("estimate", None)):
        without, with_inputs = (
            post(what, training_file=file, model=base, **more) for more in ({}, {"training": inputs})
        )
        counts = [a[where]["tokens"] if where else a for a in (without, with_inputs)]
        factor = 1 if where else without["n_epochs"]
        assert [c["trained_tokens"] for c in counts] == [num_answer * factor, num_inputs * factor]


def test_the_longest_row_is_that_of_training(post: Any, store: Any, base: str) -> None:
    file = store(lines("word " * 50, "b"))
    training = {"max_seq_length": 20}
    cut = post("preview", training_file=file, model=base, training=training)
    assert (cut["max_seq_length"], cut["data"][0]["truncated"]) == (20, True)
    report = post("validate", training_file=file, model=base, training=training)["training"]["tokens"]
    assert (report["max_seq_length"], report["num_over_max_seq_length"]) == (20, 1)
    assert post("estimate", training_file=file, model=base, training=training)["num_cut"] == 1
    for what in ("validate", "preview", "estimate"):
        error = post(what, 400, training_file=file, model=base, training={"max_seq_len": 20})
        assert (error["param"], error["code"]) == ("training.max_seq_len", "unknown_parameter")
    error = post(
        "estimate", 400, training_file=file, model=base, training={"early_stopping": {"patience": 1}}
    )
    assert error["param"] == "training.early_stopping"


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
