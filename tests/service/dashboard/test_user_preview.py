from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoclave.microcosm.shipped import shipped_world
from service.dashboard.user_preview import Piece, cut_after, pieces_of, visible
from service.db import Database
from tests.builders import Tenant, chat_line, dataset, make_base, make_file, make_tenant
from tests.service.dashboard.conftest import Browser
from workers.shipped_base import SHIPPED_BASE_ID, register_shipped_base


def _upload(user: Browser, content: bytes) -> str:
    answer = user.client.post(
        f"/app/files?csrf={user.token()}",
        data={"purpose": "fine-tune"},
        files={"file": ("mine.jsonl", content)},
        follow_redirects=False,
    )
    assert answer.status_code == 303, answer.text
    return str(answer.headers["location"].partition("=")[2])


@pytest.fixture
def base(database: Database) -> str:
    register_shipped_base(database, shipped_world())
    return SHIPPED_BASE_ID


def test_conversations_with_what_is_trained(user: Browser, base: str) -> None:
    content = (shipped_world() / "data" / "validation.jsonl").read_bytes()
    first = json.loads(content.splitlines()[0])["messages"]
    answer = next(message["content"] for message in first if message["role"] == "assistant")
    text = user.get(f"/app/files/{_upload(user, content)}").text
    assert "Line 1" in text
    trained = text.split("<mark>")[2].split("</mark>")[0]  # the first explains the colour
    assert answer in trained


def test_paging_through_lines(user: Browser, base: str) -> None:
    id = _upload(user, dataset(12))
    first = user.get(f"/app/files/{id}").text
    assert "Later lines" in first
    assert "Earlier lines" not in first
    last = user.get(f"/app/files/{id}?row=11").text
    assert "11 to 12 of 12" in last
    assert "Later lines" not in last
    beyond = user.get(f"/app/files/{id}?row=9999")
    assert beyond.status_code == 200
    assert "Line 12" in beyond.text


def test_text_from_outside_is_text(user: Browser, base: str) -> None:
    lines = dataset(12) + chat_line("<script>alert(1)</script>", "x\u0007\u202ey").encode() + b"\n"
    id = _upload(user, lines)
    text = user.get(f"/app/files/{id}?row=13").text
    assert "<script>alert" not in text
    assert "\N{SYMBOL FOR BELL}" in text
    assert "&lt;U+202E&gt;" in text


def test_statistics(user: Browser, base: str) -> None:
    rows = dataset(11).splitlines()
    id = _upload(user, b"\n".join([*rows, rows[0]]))
    text = user.get(f"/app/files/{id}/statistics").text
    assert "A job can be trained on it" in text
    assert "line 12 repeats 1" in text
    assert "Tokens in all" in text


def test_overlap_with_another_file(user: Browser, base: str) -> None:
    mine, other = _upload(user, dataset(12)), _upload(user, dataset(12))
    text = user.get(f"/app/files/{mine}/statistics?validation={other}").text
    assert "In both files" in text
    assert ">12<" in text


def test_other_projects_files_are_not_there(user: Browser, database: Database, base: str) -> None:
    stranger = make_tenant(database, name="Stranger")
    with database.transaction() as session:
        foreign = make_file(session, stranger.project_id)
    assert user.get(f"/app/files/{foreign.id}").status_code == 404
    assert user.get(f"/app/files/{foreign.id}/statistics").status_code == 404
    mine = _upload(user, dataset(12))
    text = user.get(f"/app/files/{mine}/statistics?validation={foreign.id}").text
    assert "No such file" in text


def test_a_base_whose_files_are_not_here(user: Browser, database: Database) -> None:
    with database.transaction() as session:
        make_base(session)
    answer = user.get(f"/app/files/{_upload(user, dataset(12))}")
    assert answer.status_code == 200
    assert 'role="alert"' in answer.text


def test_without_a_base_and_with_another_purpose(user: Browser, database: Database, tenant: Tenant) -> None:
    id = _upload(user, dataset(12))
    assert "no base model yet" in user.get(f"/app/files/{id}").text
    with database.transaction() as session:
        file: Any = make_file(session, tenant.project_id, purpose="user_data", num_examples=None)
    assert "another purpose" in user.get(f"/app/files/{file.id}").text


@given(st.text(max_size=60), st.lists(st.integers(0, 60), max_size=8), st.integers(0, 80))
def test_pieces_lose_nothing(text: str, cuts: list[int], shown: int) -> None:
    marks = sorted({min(cut, len(text)) for cut in cuts})
    spans = list(zip(marks[::2], marks[1::2], strict=False))
    pieces = pieces_of(text, spans)
    assert "".join(piece.text for piece in pieces) == visible(text)
    first, rest = cut_after(pieces, shown)
    assert "".join(piece.text for piece in [*first, *rest]) == visible(text)
    assert len("".join(piece.text for piece in first)) <= shown


def test_pieces_know_what_is_trained() -> None:
    assert pieces_of("abcdef", [(1, 3), (5, 6)]) == [
        Piece("a", trained=False),
        Piece("bc", trained=True),
        Piece("de", trained=False),
        Piece("f", trained=True),
    ]
