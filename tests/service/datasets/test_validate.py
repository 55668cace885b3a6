"""Broken rules, duplicates and overlap of a dataset, sent or stored."""

from __future__ import annotations

import json
from typing import Any

import pytest
from fastapi.testclient import TestClient

from tests.builders import Tenant, chat_line
from tests.service.datasets.conftest import BENIGN, lines


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
