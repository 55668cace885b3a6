"""100,000 generated files through the checker, in pieces cut anywhere, beside a slow and plain reference.

The reference cuts lines with one `split`, decides with the standard library's `json` and a few rules, and
never looks at the checker's code. It says which lines are broken; the checker must name exactly those.
"""

from __future__ import annotations

import json
import random
import re
from typing import Any

import pytest

from autoclave.data.conversations import ConversationChecker
from autoclave.errors import DataError

NUM_INPUTS = 100_000
MAX_LINE_BYTES = 600
MAX_DEPTH = 64
ROLES = {"system", "developer", "user", "assistant", "tool", "function"}
STRINGS = re.compile(r'"(?:[^"\\]|\\.)*"')

CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
VALID = [
    {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]},
    {"messages": [{"content": "ä", "role": "user"}, {"content": "\u2028", "role": "assistant", "weight": 1}]},
    {"messages": [{"role": "system", "content": ""}, {"role": "user", "content": "a\nb\\\""}]
     + [{"role": "assistant", "content": "x", "weight": w} for w in (0, 1)]},
    {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "tool_calls": [CALL]},
                  {"role": "tool", "content": "4", "tool_call_id": "c"}],
     "tools": [{"type": "function", "function": {"name": "f", "parameters": {"a": [1, 2.5, {"b": None}]}}}],
     "parallel_tool_calls": False},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]},
                  {"role": "assistant", "content": None, "function_call": CALL["function"]},
                  {"role": "function", "name": "f", "content": "1"}],
     "functions": [{"name": "f"}]},
]  # fmt: skip
LINES = [json.dumps(example, ensure_ascii=i % 2 == 0).encode() for i, example in enumerate(VALID)]
FRAGMENTS = [
    b"", b" ", b"\t ", b"\r", b"{}", b"[]", b"null", b"7", b'"x"', b"{", b"}", b"\x00", b"\xff\xfe{",
    b"\xef\xbb\xbf", b"\xef\xbb\xbf" + LINES[0], b"\xef\xbb", b"\xed\xa0\x80", LINES[0] + LINES[1],
    LINES[0] + b" " + LINES[0], LINES[0][:30], LINES[0][30:], b"[" * 300, b'{"a":' * 100 + b"1" + b"}" * 100,
    b'{"messages": ' + b"[" * 63 + b"]" * 63 + b"}", b'{"messages": ' + b"[" * 64 + b"]" * 64 + b"}",
    b'{"messages": 1e999}', b'{"messages": ' + b"9" * 590 + b"}", b'{"messages": "' + b"x" * 700 + b'"}',
    b'{"messages": [], "messages": ' + LINES[0][13:], LINES[0][:-1] + b', "messages": []}',
    LINES[0].replace(b'"user"', b'"user", "role": "assistant"'),
    LINES[0].replace(b'"hi"', b'"hi", "content": ""'),
    LINES[0].replace(b'"hi"', b'"", "content": "hi"'), LINES[0].replace(b'"ho"', b'"ho", "weight": 1e0'),
    LINES[0].replace(b'"ho"', b'"ho", "weight": ' + b"1" * 60),
    LINES[0].replace(b'"ho"', b'"ho", "weight": -0'),
    LINES[3].replace(b'"function"', b'"functioc", "type": "function"'),
    LINES[0].replace(b'"ho"', b'"\\ud800"'), LINES[0].replace(b'"ho"', b'"\\ud83d\\ude00"'),
    LINES[0].replace(b'"ho"', b'"\\u0000"'), LINES[0].replace(b"hi", b"h\x01i"),
    LINES[0].replace(b"hi", b"h\xc0i"),
    LINES[0].replace(b": ", b" :\t"), LINES[0].replace(b"user", b"\\u0075ser"),
    LINES[0] + b" \t", b" " + LINES[0],
    b'{"messages": [{"role": "assistant", "content": "a"}]}',
    b'{"messages": [{"role": "assistant", "content": "a", "weight": 0}, ' + LINES[0][14:],
    b'{"prompt": "a", "completion": "b"}', b'{"input": {}, "preferred_output": []}',
    LINES[0][:-1] + b', "tools": [{"type":"function","function":{"name":"f","parameters":{"a":' + b"[" * 58
    + b"]" * 58 + b"}}}]}",
    LINES[0][:-1] + b', "tools": [{"type":"function","function":{"name":"f","parameters":{"a":' + b"[" * 60
    + b"]" * 60 + b"}}}]}",
]  # fmt: skip
TOKENS = [
    b"{",
    b"}",
    b"[",
    b"]",
    b'"',
    b",",
    b":",
    b"\\",
    b"\n",
    b"\r",
    b"\r\n",
    b"\n\n",
    b"\x00",
    b"\xff",
    b"\xc3",
]
TOKENS += [
    b"null",
    b"0",
    b"1",
    b"-1",
    b"true",
    b'""',
    b"1e400",
    b'"role"',
    b'"weight": 0,',
    b'"content": null,',
    b"\\u",
]


def mutated(rng: random.Random, line: bytes) -> bytes:
    for _ in range(rng.choice((1, 1, 2, 4))):
        start = rng.randrange(len(line) + 1)
        kind = rng.randrange(5)
        if kind == 0:
            line = line[:start] + line[start + rng.randrange(1, 12) :]
        elif kind == 1:
            line = line[:start] + rng.choice(TOKENS) + line[start:]
        elif kind == 2:
            line = line[:start] + rng.choice(TOKENS) + line[start + 1 :]
        elif kind == 3:
            line = line[:start] + line[start : start + 20] + line[start:]
        else:
            line = line[:start] + bytes([rng.randrange(256)]) + line[start + 1 :]
    return line


def generated(rng: random.Random) -> bytes:
    lines = []
    for _ in range(rng.choice((0, 1, 1, 2, 3, 5))):
        kind = rng.random()
        if kind < 0.4:
            lines.append(rng.choice(LINES))
        elif kind < 0.7:
            lines.append(mutated(rng, rng.choice(LINES)))
        elif kind < 0.95:
            lines.append(rng.choice(FRAGMENTS))
        else:
            lines.append(rng.randbytes(rng.randrange(40)))
    data = rng.choice((b"\n", b"\n", b"\r\n")).join(lines)
    return rng.choice((b"", b"", b"\xef\xbb\xbf")) + data + rng.choice((b"", b"\n", b"\r\n", b"\n\n", b" "))


def pieces(rng: random.Random, data: bytes) -> list[bytes]:
    if rng.random() < 0.3:
        return [data]
    cuts = sorted(rng.randrange(len(data) + 1) for _ in range(rng.choice((1, 2, 5, 20))))
    return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]


def reference(data: bytes) -> tuple[set[int], int]:
    """(numbers of the broken lines, count of valid lines)"""
    lines = data.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    if lines[-1] == b"":
        lines.pop()
    lines = [line.removesuffix(b"\r") for line in lines]
    # What bytes.strip takes for white space, at the end of the file: not broken.
    while lines and len(lines[-1]) <= MAX_LINE_BYTES and not lines[-1].strip():
        lines.pop()
    broken = {n for n, line in enumerate(lines, 1) if len(line) > MAX_LINE_BYTES or not is_valid(line)}
    return broken, len(lines) - len(broken)


def no_constant(name: str) -> Any:
    raise ValueError(name)


def finite(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError(text)
    return value


def is_valid(line: bytes) -> bool:
    try:
        text = line.decode("utf-8")
        if depth(text) > 200:
            return False
        value = json.loads(text.strip(" \t\r\n"), parse_constant=no_constant, parse_float=finite)
        json.dumps(value, ensure_ascii=False).encode()  # half of a surrogate pair
    except ValueError:
        return False
    return depth(json.dumps(value)) <= MAX_DEPTH and valid_example(value)


def depth(text: str) -> int:
    deepest = level = 0
    for character in STRINGS.sub("", text):
        level += (character in "[{") - (character in "]}")
        deepest = max(deepest, level)
    return deepest


def only(value: Any, required: dict[str, Any], optional: dict[str, Any]) -> bool:
    """Whether an object has these keys and no others, each of its type (a class or a predicate)."""
    if not isinstance(value, dict) or not required.keys() <= value.keys():
        return False
    kinds = required | optional
    return all(
        key in kinds
        and (
            (item is None and key in optional)
            or (type(item) is kinds[key] if isinstance(kinds[key], type) else kinds[key](item))
        )
        for key, item in value.items()
    )


def each(check: Any) -> Any:
    return lambda value: isinstance(value, list) and all(check(item) for item in value)


def is_call(value: Any) -> bool:
    return only(value, {"name": str, "arguments": str}, {})


def is_definition(value: Any) -> bool:
    return only(
        value,
        {"name": lambda n: isinstance(n, str) and re.fullmatch("[a-zA-Z0-9_-]{1,64}", n)},
        {"description": str, "parameters": dict, "strict": bool},
    )


def is_tool(value: Any) -> bool:
    return only(value, {"type": lambda t: t == "function", "function": is_definition}, {})


def is_tool_call(value: Any) -> bool:
    return only(value, {"id": str, "type": lambda t: t == "function", "function": is_call}, {})


def is_part(value: Any) -> bool:
    return only(value, {"type": lambda t: t == "text", "text": str}, {})


def valid_message(message: Any) -> bool:
    content = each(is_part)
    if not only(
        message,
        {"role": lambda r: isinstance(r, str) and r in ROLES},
        {
            "content": lambda c: isinstance(c, str) or content(c),
            "name": str,
            "weight": lambda w: type(w) is int and w in (0, 1),
            "tool_calls": each(is_tool_call),
            "tool_call_id": str,
            "function_call": is_call,
        },
    ):
        return False
    role, found = message["role"], {key for key, value in message.items() if value is not None}
    text = message.get("content")
    text = "".join(part["text"] for part in text) if isinstance(text, list) else text
    if role == "assistant":
        return "tool_call_id" not in found and bool(
            text or message.get("tool_calls") or "function_call" in found
        )
    if found & {"weight", "tool_calls", "function_call"} or text is None or (role == "user" and not text):
        return False
    return ("tool_call_id" in found) == (role == "tool") and (role != "function" or "name" in found)


def trains(message: Any) -> bool:
    return message["role"] == "assistant" and message.get("weight") != 0


def valid_example(value: Any) -> bool:
    return (
        only(
            value,
            {"messages": lambda m: isinstance(m, list) and m and all(map(valid_message, m))},
            {
                "tools": each(is_tool),
                "parallel_tool_calls": bool,
                "functions": lambda f: each(is_definition)(f) and 1 <= len(f) <= 128,
            },
        )
        and any(map(trains, value["messages"]))
        and not trains(value["messages"][0])
    )


@pytest.mark.slow
def test_no_input_crashes_the_checker_and_no_line_number_is_wrong() -> None:
    rng = random.Random(20260821)
    num_with_both = 0
    for _ in range(NUM_INPUTS):
        data = generated(rng)
        checker = ConversationChecker(min_examples=1, max_issues=1000, max_line_bytes=MAX_LINE_BYTES)
        for piece in pieces(rng, data):
            checker.feed(piece)
        broken, num_valid = reference(data)
        try:
            summary = checker.finish()
            found, num_found = set(), summary.num_examples
        except DataError as error:
            found, num_found = {issue.line for issue in error.issues}, num_valid
        if not broken and not num_valid:
            assert found == {0}, data
            continue
        assert found == broken, data
        assert num_found == num_valid, data
        num_with_both += bool(broken) and bool(num_valid)
    assert num_with_both > NUM_INPUTS / 10, "the generator makes too few files with broken and valid lines"
