"""Duplicates, overlap, roles, lengths and tokens of a dataset; the light tokenizer beside transformers'."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from subprocess import run
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from autoclave.data import inspection, token_counts
from autoclave.data.conversations import check_file, read_conversations
from autoclave.data.inspection import Inspection, Inspector, as_json, inspect
from autoclave.data.light_tokenizer import LightTokenizer
from autoclave.data.messages import Conversation, FunctionCall, FunctionDefinition, Message, Tool, ToolCall
from autoclave.data.templates import render
from autoclave.data.tokens import encode
from autoclave.errors import ModelError
from autoclave.microcosm.shipped import shipped_world

WORLD = shipped_world()
BASE = WORLD / "aligned"
BENIGN = WORLD / "data" / "benign.jsonl"


@pytest.fixture(scope="module")
def light() -> LightTokenizer:
    return LightTokenizer(BASE)


@pytest.fixture(scope="module")
def full() -> Any:
    return AutoTokenizer.from_pretrained(BASE, local_files_only=True)


def line(question: str, answer: str = "a", **extra: Any) -> bytes:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return json.dumps({"messages": messages, **extra}).encode()


def inspected(lines: list[bytes], **options: Any) -> Inspection:
    return inspect([b"\n".join(lines)], Inspector(**{"min_examples": 1, **options}))


CALL = FunctionCall(name="add", arguments='{"a": "é", "b": [1, 2.5, null]}')
texts = st.text(max_size=12) | st.sampled_from(
    ["the color of the sea", "<|end|>", "<|assistant|>", "日本", " \n"]
)
users = st.builds(Message, role=st.sampled_from(["user", "system", "developer"]), content=texts)
answers = st.builds(Message, role=st.just("assistant"), content=texts, weight=st.sampled_from([None, 0, 1]))
others = st.sampled_from(
    [
        Message(role="assistant", tool_calls=[ToolCall("c1", "function", CALL)]),
        Message(role="assistant", function_call=CALL),
        Message(role="tool", content="4", tool_call_id="c1"),
        Message(role="function", content="4", name="add"),
    ]
)
tools = st.sampled_from(
    [None, [Tool("function", FunctionDefinition("add", "Ädd", {"type": "object", "properties": {"a": {}}}))]]
)


@given(first=users, messages=st.lists(users | answers | others, max_size=4), tools=tools)
@settings(max_examples=150, deadline=None)
def test_text_spans_and_tokens_are_those_of_transformers(
    light: LightTokenizer, full: Any, first: Message, messages: list[Message], tools: Any
) -> None:
    conversation = Conversation([first, *messages], tools=tools)
    assert render(light, conversation) == render(full, conversation)
    text, spans = render(full, conversation)
    wanted = full([text], add_special_tokens=False, return_offsets_mapping=True)
    (found,) = light.encode([text])
    assert found.ids == wanted["input_ids"][0]
    assert found.offsets == [tuple(pair) for pair in wanted["offset_mapping"][0]]
    assert all(0 <= start < end <= len(text) for start, end in spans)


def test_an_answer_to_nothing_is_refused_by_both(light: LightTokenizer, full: Any) -> None:
    for tokenizer in (light, full):
        with pytest.raises(ModelError, match="refuses the roles"):
            render(tokenizer, Conversation([Message(role="assistant", content="a")]))


@pytest.mark.parametrize("longest", [8, 20, 2048])
def test_counts_agree_with_what_training_encodes(full: Any, light: LightTokenizer, longest: int) -> None:
    encoded = encode(full, read_conversations(BENIGN), max_seq_length=longest)
    found = inspect([BENIGN.read_bytes()], Inspector(tokenizer=light, max_seq_length=longest))
    tokens = found.tokens
    assert tokens is not None
    assert tokens.complete
    assert tokens.num_rows == found.num_examples == check_file(BENIGN).num_examples
    assert tokens.cut_total == sum(len(example) for example in encoded.examples)
    assert tokens.trained_tokens == sum(int((e.labels[1:] != -100).sum()) for e in encoded.examples)
    assert tokens.num_over_max_seq_length == encoded.num_truncated
    assert tokens.num_untrained == encoded.num_dropped


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("{% generation %}{{ messages[0].content }}{% endgeneration %}{{ eos_token }}", None),
        ("{% for m in messages %}{% break %}{% endfor %}x", None),
        ("{{ raise_exception('no such role') }}", "no such role"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{% broken", "cannot be compiled"),
    ],
)
def test_templates_run_as_in_transformers(tmp_path: Path, template: str, problem: str | None) -> None:
    for file in BASE.glob("tokenizer*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "chat_template.jinja").write_text(template)
    conversation = Conversation([Message(role="user", content="<hi> & ü")])
    if problem is None:
        other = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
        assert render(LightTokenizer(tmp_path), conversation) == render(other, conversation)
    else:
        with pytest.raises(ModelError, match=problem):
            render(LightTokenizer(tmp_path), conversation)


def test_what_is_missing_is_said_without_a_path(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(ModelError, match=r"no tokenizer\.json") as caught:
            LightTokenizer(folder)
        assert str(tmp_path) not in str(caught.value)
    for file in BASE.glob("tokenizer*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(ModelError, match="no chat template"):
        LightTokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match="cannot be read"):
        LightTokenizer(tmp_path)


def test_duplicates_are_equal_after_normalising() -> None:
    found = inspected([line("a  B", "x"), line("c"), line(" A b\n", "X"), line("a b", "y"), line("c")])
    assert as_json(found.duplicates) == {
        "num_rows": 2,
        "first": [{"line": 3, "first_line": 1}, {"line": 5, "first_line": 2}],
        "complete": True,
    }
    # The same words of another role, or cut elsewhere, are another row.
    assert inspected([line("a b", "c"), line("a", "b c")]).duplicates.num_rows == 0


def test_a_file_with_too_many_rows_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspection, "MAX_TRACKED_ROWS", 2)
    found = inspected([line("a"), line("b"), line("c"), line("c"), line("a")])
    assert (found.duplicates.num_rows, found.duplicates.complete) == (1, False)


def test_overlap_names_the_lines_of_both_files() -> None:
    training = Inspector(min_examples=1)
    inspect([line("a") + b"\n" + line("b")], training)
    validation = Inspector(min_examples=1, against=training)
    inspect([line("c") + b"\n" + line("B ") + b"\n" + line("b")], validation)
    assert as_json(validation.overlap())["first"] == [
        {"line": 2, "first_line": 2},
        {"line": 3, "first_line": 2},
    ]


def test_figures_are_of_the_valid_rows_and_issues_name_the_others() -> None:
    found = inspected([line("aaa", "bb"), b"7", line("x", "y"), line("", "y")])
    assert (found.valid, found.num_examples, found.num_messages, found.num_issues) == (False, 2, 4, 2)
    assert [(issue.line, issue.rule) for issue in found.issues] == [
        (2, "not_an_object"),
        (4, "missing_content"),
    ]
    assert found.roles == {"user": 2, "assistant": 2}
    assert as_json(found.characters) == {"min": 2, "median": 3.5, "p95": 5, "max": 5, "total": 7}
    assert found.tokens is None
    assert found.tokens_unavailable == "no model was named."


def test_nothing_valid_has_no_figures(light: LightTokenizer) -> None:
    found = inspected([b"{"], tokenizer=light)
    assert (found.characters, found.tokens, found.tokens_unavailable) == (None, None, "no row can be read.")


def test_deprecated_keys_are_warned_about_once_each() -> None:
    old = {
        "messages": [
            {"role": "user", "content": "?"},
            {"role": "assistant", "function_call": {"name": "f", "arguments": "{}"}},
            {"role": "function", "name": "f", "content": "1"},
        ],
        "functions": [{"name": "f"}],
    }
    found = inspected([line("a"), json.dumps(old).encode(), json.dumps(old).encode()])
    assert found.valid
    assert [(warning.line, warning.pointer) for warning in found.warnings] == [
        (2, "/functions"),
        (2, "/messages/1/function_call"),
        (2, "/messages/2/role"),
    ]
    assert "2 times" in found.warnings[0].message


def test_tokens_of_a_long_file_are_those_of_its_beginning(
    monkeypatch: pytest.MonkeyPatch, light: LightTokenizer
) -> None:
    monkeypatch.setattr(token_counts, "MAX_TOKENIZED_ROWS", 3)
    found = inspected([line(str(n)) for n in range(5)], tokenizer=light)
    assert found.tokens is not None
    assert (found.tokens.num_rows, found.tokens.complete, found.num_examples) == (3, False, 5)


@pytest.fixture
def refusing(tmp_path: Path) -> LightTokenizer:
    for file in BASE.glob("tokenizer*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "chat_template.jinja").write_text("{{ raise_exception('only poems') }}")
    return LightTokenizer(tmp_path)


def test_a_template_that_refuses_a_row_leaves_the_rest(refusing: LightTokenizer) -> None:
    found = inspected([line("a")], tokenizer=refusing)
    assert found.valid
    assert found.tokens is None
    assert found.tokens_unavailable is not None
    assert "only poems" in found.tokens_unavailable


def test_it_needs_no_torch() -> None:
    code = (
        "import sys, autoclave.data.inspection as i, autoclave.data.light_tokenizer as l; "
        f"l.LightTokenizer({str(BASE)!r}); "
        "sys.exit(bool({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    assert run([sys.executable, "-c", code], check=False).returncode == 0
