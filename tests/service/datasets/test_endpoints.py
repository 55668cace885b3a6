"""Validate, preview and estimate over real databases, a real socket and the shipped base."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from openai import AsyncOpenAI, BadRequestError, OpenAI
from transformers import AutoTokenizer

from autoclave.data.conversations import read_conversations
from autoclave.data.templates import render
from autoclave.spec import JobSpec
from service.db import Database
from service.storage import Storage
from tests.builders import BASE_ID, Tenant, make_base, make_file, make_tenant
from tests.service.datasets.conftest import BASE, BENIGN, lines
from workers.shipped_base import shipped_spec


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
