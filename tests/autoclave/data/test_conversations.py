"""The dataset checker: every rule with its place, any chunking, and the fast and slow halves agree."""

import hashlib
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoclave.data.conversations import ConversationChecker, check_file, read_conversations
from autoclave.data.fast_lines import FastLines
from autoclave.data.messages import decode_line
from autoclave.data.rules import explain
from autoclave.errors import DataError, DataIssue

USER = {"role": "user", "content": "2+2?"}
ANSWER = {"role": "assistant", "content": "4"}
GOOD = json.dumps({"messages": [USER, ANSWER]}).encode()
CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": "{}"}}


def check(data: bytes, chunk_bytes: int = 1 << 20, **options: Any) -> Any:
    checker = ConversationChecker(**{"min_examples": 1, **options})
    for start in range(0, len(data), chunk_bytes):
        checker.feed(data[start : start + chunk_bytes])
    return checker.finish()


def issues(data: bytes, **options: Any) -> list[DataIssue]:
    with pytest.raises(DataError) as caught:
        check(data, **options)
    return caught.value.issues


def only_issue(line: Any) -> tuple[str, str]:
    encoded = line if isinstance(line, bytes) else json.dumps(line).encode()
    found = issues(GOOD + b"\n" + encoded + b"\n" + GOOD)
    assert [issue.line for issue in found] == [2], found
    assert found[0].message.endswith(".")
    assert found[0].fix
    return found[0].rule, found[0].pointer


@pytest.mark.parametrize(
    ("line", "rule", "pointer"),
    [
        (b'{"messages": "\xff"}', "invalid_utf8", ""),
        (b'{"messages": [', "invalid_json", ""),
        (b'{"messages": NaN}', "invalid_json", ""),
        (b"[" * 100_000 + b"]" * 100_000, "nested_too_deeply", ""),
        (b'{"messages": ' + b"[" * 64 + b"]" * 64 + b"}", "nested_too_deeply", ""),
        ([], "not_an_object", ""),
        ({}, "missing_messages", ""),
        ({"prompt": "a", "completion": "b"}, "legacy_example", ""),
        ({"input": {}, "preferred_output": [], "non_preferred_output": []}, "preference_example", ""),
        ({"input": {}, "preferred_completion": [], "non_preferred_completion": []}, "preference_example", ""),
        ({"messages": {}}, "wrong_type", "/messages"),
        ({"messages": []}, "empty_messages", "/messages"),
        ({"messages": [USER, ANSWER, 7]}, "wrong_type", "/messages/2"),
        ({"messages": [USER, ANSWER], "a/b": 1}, "unrecognized_key", "/a~1b"),
        ({"messages": [USER, {**ANSWER, "wieght": 0}]}, "unrecognized_key", "/messages/1/wieght"),
        ({"messages": [{"content": "x"}, ANSWER]}, "missing_role", "/messages/0"),
        ({"messages": [{**USER, "role": "robot"}, ANSWER]}, "unrecognized_role", "/messages/0/role"),
        ({"messages": [{"role": "user"}, ANSWER]}, "missing_content", "/messages/0"),
        ({"messages": [{"role": "user", "content": ""}, ANSWER]}, "missing_content", "/messages/0/content"),
        (
            {"messages": [USER, {"role": "assistant", "content": None}]},
            "missing_content",
            "/messages/1/content",
        ),
        (
            {"messages": [{"role": "system", "content": None}, ANSWER]},
            "missing_content",
            "/messages/0/content",
        ),
        ({"messages": [{"role": "user", "content": 5}, ANSWER]}, "wrong_type", "/messages/0/content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}, ANSWER]},
            "unsupported_content",
            "/messages/0/content/0/type",
        ),
        ({"messages": [USER, {**ANSWER, "weight": 0.5}]}, "bad_weight", "/messages/1/weight"),
        ({"messages": [USER, {**ANSWER, "weight": True}]}, "bad_weight", "/messages/1/weight"),
        ({"messages": [{**USER, "weight": 1}, ANSWER]}, "bad_weight", "/messages/0/weight"),
        (
            {"messages": [{**USER, "tool_calls": [CALL]}, ANSWER]},
            "unrecognized_key",
            "/messages/0/tool_calls",
        ),
        ({"messages": [USER, ANSWER, {"role": "tool", "content": "4"}]}, "missing_key", "/messages/2"),
        ({"messages": [ANSWER, USER, ANSWER]}, "answer_to_nothing", "/messages/0"),
        ({"messages": [USER]}, "no_trained_assistant_message", "/messages"),
        ({"messages": [USER, {**ANSWER, "weight": 0}]}, "no_trained_assistant_message", "/messages"),
        (
            {"messages": [USER, {"role": "assistant", "tool_calls": [{**CALL, "function": {"name": "f"}}]}]},
            "missing_key",
            "/messages/1/tool_calls/0/function",
        ),
        (
            {"messages": [USER, ANSWER], "tools": [{"type": "function", "function": {"name": "a b"}}]},
            "wrong_type",
            "/tools/0/function/name",
        ),
        ({"messages": [USER, ANSWER], "functions": []}, "wrong_type", "/functions"),
    ],
)
def test_a_broken_line_is_named_with_its_place(line: Any, rule: str, pointer: str) -> None:
    assert only_issue(line) == (rule, pointer)


def test_every_issue_of_a_line_is_reported() -> None:
    line = {"messages": [{"role": "robot", "content": 3, "weight": True}], "extra": 1}
    assert [i.rule for i in issues(json.dumps(line).encode())] == [
        "unrecognized_key",
        "unrecognized_role",
        "bad_weight",
        "wrong_type",
        "no_trained_assistant_message",
    ]


@pytest.mark.parametrize(
    "line",
    [
        {"messages": [{"role": "developer", "content": ""}, USER, ANSWER]},
        {"messages": [{**ANSWER, "weight": 0}, USER, ANSWER]},
        {"messages": [USER, {"role": "assistant", "content": None, "tool_calls": [CALL]}]},
        {"messages": [USER, {**ANSWER, "weight": None, "name": None}]},
        {"messages": [USER, {**ANSWER, "weight": 0}, USER, ANSWER], "parallel_tool_calls": False},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}, ANSWER], "tools": []},
        {"messages": [USER, ANSWER, {"role": "tool", "content": "4", "tool_call_id": "c1"}]},
        {"messages": [USER, ANSWER, {"role": "function", "content": "4", "name": "add"}]},
    ],
)
def test_valid_variants_are_accepted(line: Any) -> None:
    assert check(json.dumps(line).encode()).num_examples == 1


def test_prompts_without_answers_are_accepted_when_asked() -> None:
    prompt = json.dumps({"messages": [USER]}).encode()
    assert check(prompt, needs_answer=False).num_messages == 1
    assert [i.rule for i in issues(b'{"messages": []}', needs_answer=False)] == ["empty_messages"]


def test_summary_counts_and_hashes_the_bytes_as_they_came() -> None:
    data = b"\xef\xbb\xbf" + GOOD + b"\r\n" + GOOD + b"\r\n\r\n  \n"
    summary = check(data)
    assert (summary.num_examples, summary.num_messages, summary.bytes) == (2, 4, len(data))
    assert summary.sha256 == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("data", [b"", b"\n", b"\xef\xbb\xbf", b" \r\n \n"])
def test_an_empty_file_is_refused(data: bytes) -> None:
    assert [(i.line, i.rule) for i in issues(data)] == [(0, "empty_file")]


def test_a_line_with_very_many_issues_is_counted_in_little_memory() -> None:
    line = b'{"messages": [' + b"7," * 200_000 + b"7]}"
    tracemalloc.start()
    with pytest.raises(DataError) as caught:
        check(line)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (len(caught.value.issues), caught.value.num_issues) == (50, 200_002)
    assert peak < 16 * len(line)


def test_every_tool_with_a_mistake_is_named() -> None:
    tools = [{"type": "function", "function": {"name": "a b"}}, {"type": "function", "functoin": {}}, 3]
    found = issues(json.dumps({"messages": [USER, ANSWER], "tools": tools}).encode())
    assert [(i.pointer, i.rule) for i in found] == [
        ("/tools/0/function/name", "wrong_type"),
        ("/tools/1/functoin", "unrecognized_key"),
        ("/tools/1", "missing_key"),
        ("/tools/2", "wrong_type"),
    ]


def test_too_few_examples() -> None:
    found = issues(b"\n".join([GOOD] * 9), min_examples=10)
    assert [(i.line, i.rule) for i in found] == [(0, "too_few_examples")]
    assert "9 examples" in found[0].message
    assert check(b"\n".join([GOOD] * 10), min_examples=10).num_examples == 10


def test_blank_lines_inside_are_refused_one_by_one() -> None:
    found = issues(GOOD + b"\n\n \n" + GOOD + b"\n\n" + GOOD + b"\n\n")
    assert [(i.line, i.rule) for i in found] == [(2, "blank_line"), (3, "blank_line"), (5, "blank_line")]


def test_the_line_limit_counts_neither_line_end_nor_byte_order_mark() -> None:
    limit = len(GOOD)
    for chunk_bytes in (1, 7, 10_000):
        bom_and_crlf = b"\xef\xbb\xbf" + GOOD + b"\r\n" + GOOD + b"\r\n"
        assert check(bom_and_crlf, chunk_bytes, max_line_bytes=limit).num_examples == 2
        found = issues(GOOD + b"\n" + GOOD + b" \n" + GOOD * 50 + b"\n" + GOOD, max_line_bytes=limit)
        assert [(i.line, i.rule) for i in found] == [(2, "line_too_long"), (3, "line_too_long")]


def test_all_issues_are_counted_and_the_first_are_kept() -> None:
    with pytest.raises(DataError) as caught:
        check(b"7\n" * 30 + GOOD + b"\n" * 30 + GOOD, max_issues=4)
    assert [i.line for i in caught.value.issues] == [1, 2, 3, 4]
    assert caught.value.num_issues == 30 + 29


@given(
    lines=st.lists(st.sampled_from([GOOD, b"", b"7", b"\xff", GOOD * 3, b"\r", b"{"]), max_size=8),
    chunk_bytes=st.integers(1, 90),
)
@settings(max_examples=60, deadline=None)
def test_chunking_changes_nothing(lines: list[bytes], chunk_bytes: int) -> None:
    def outcome(size: int) -> Any:
        try:
            return check(b"\n".join(lines), size, max_line_bytes=2 * len(GOOD))
        except DataError as error:
            return error.issues, error.num_issues

    assert outcome(chunk_bytes) == outcome(1 << 20)


def test_read_yields_in_order_and_names_the_broken_line(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD + b"\r\n" + GOOD.replace(b'"4"', b'"5"') + b"\n\n")
    assert [c.messages[-1].text for c in read_conversations(path)] == ["4", "5"]
    path.write_bytes(GOOD + b"\n7\n")
    with pytest.raises(DataError, match=r"data\.jsonl: line 2: .*not_an_object"):
        list(read_conversations(path))
    path.write_bytes(GOOD + b"\n\n" + GOOD)
    with pytest.raises(DataError, match="blank_line"):
        list(read_conversations(path))


def test_check_file_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(GOOD)
    with pytest.raises(DataError, match=r"data\.jsonl: file: .*too_few_examples"):
        check_file(path)
    assert check_file(path, min_examples=1).num_examples == 1


scalars = (
    st.none() | st.booleans() | st.integers(-1, 2) | st.floats(0, 1) | st.sampled_from(["", "x", "user"])
)
parts = st.fixed_dictionaries(
    {}, optional={"type": st.sampled_from(["text", "image_url", 1]), "text": scalars}
)
calls = st.just(CALL) | st.just({**CALL, "id": 1}) | scalars
messages = st.fixed_dictionaries(
    {},
    optional={
        "role": st.sampled_from(["system", "developer", "user", "assistant", "tool", "function", "robot"]),
        "content": scalars | st.lists(parts | scalars, max_size=2) | st.just("text"),
        "name": scalars,
        "weight": scalars,
        "tool_calls": st.lists(calls, max_size=2) | scalars,
        "tool_call_id": scalars,
        "function_call": st.just(CALL["function"]) | scalars,
        "other": scalars,
    },
)
likely_good = st.sampled_from([USER, ANSWER, {**ANSWER, "weight": 0}])
examples = st.fixed_dictionaries(
    {},
    optional={
        "messages": st.lists(likely_good | messages | scalars, max_size=3) | scalars,
        "tools": st.none()
        | st.lists(st.just({"type": "function", "function": {"name": "f"}}) | scalars, max_size=2),
        "functions": st.none() | st.lists(st.just({"name": "f"}) | scalars, max_size=2),
        "parallel_tool_calls": scalars,
        "other": scalars,
    },
)


@given(
    line=examples.map(lambda e: json.dumps(e).encode()) | st.binary(max_size=20), needs_answer=st.booleans()
)
@settings(max_examples=600, deadline=None)
def test_the_fast_and_the_slow_half_agree(line: bytes, needs_answer: bool) -> None:
    conversation = decode_line(line, needs_answer=needs_answer)
    assert (conversation is not None) == (explain(line, 1, needs_answer=needs_answer) == [])
    # The fast counting may leave a line to the other two, but what it counts they accept.
    counted = FastLines(needs_answer=needs_answer).count_valid([line])
    assert counted == (0, 0) or (conversation is not None and counted == (1, len(conversation.messages)))


DEEP = {"a": 1}
for _ in range(61):
    DEEP = {"a": DEEP}  # type: ignore[dict-item]
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
DEEP_TOOL = {"type": "function", "function": {"name": "add", "parameters": DEEP}}
REPLY = {"role": "assistant", "tool_calls": [CALL]}


@pytest.mark.parametrize(
    "example",
    [
        {"messages": [USER, ANSWER]},
        {"messages": [{"role": "system", "content": ""}, USER, {**ANSWER, "weight": 1, "name": "a"}]},
        {"messages": [{"role": "developer", "content": "x"}, USER, ANSWER, USER, {**ANSWER, "weight": 0}]},
        {
            "messages": [USER, REPLY, {"role": "tool", "content": "4", "tool_call_id": "c1"}],
            "tools": [TOOL],
            "parallel_tool_calls": False,
        },
        {
            "messages": [
                USER,
                {"role": "assistant", "content": None, "function_call": CALL["function"]},
                {"role": "function", "content": "4", "name": "add"},
                ANSWER,
            ],
            "functions": [TOOL["function"]],
        },
        {"messages": [USER, ANSWER], "tools": None},
    ],
)
def test_the_forms_that_datasets_have_are_counted_fast(example: Any) -> None:
    line = json.dumps(example).encode()
    assert FastLines().count_valid([line, GOOD, line]) == (3, 2 * len(example["messages"]) + 2)
    assert decode_line(line) is not None


@pytest.mark.parametrize(
    "example",
    [
        {"messages": [USER, ANSWER], "tools": [DEEP_TOOL]},
        {"messages": [USER, ANSWER], "functions": [DEEP_TOOL["function"]]},
        {"messages": [USER, ANSWER], "functions": []},
        {"messages": [USER, ANSWER], "tools": [TOOL, {"type": "function"}]},
        {"messages": [USER, {**REPLY, "tool_calls": []}]},
        {"messages": [USER, {**REPLY, "weight": 0}]},
    ],
)
def test_a_broken_line_stops_the_fast_counting_every_time(example: Any) -> None:
    fast, line = FastLines(), json.dumps(example).encode()
    good = json.dumps({"messages": [USER, REPLY], "tools": [TOOL]}).encode()
    for _ in range(2):
        assert fast.count_valid([good, line, good]) == (1, 2)
    assert decode_line(line) is None
    assert explain(line, 1)
