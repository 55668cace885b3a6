"""Why one line of a chat dataset is refused: every broken rule with its place and what to do.

The slow half of `messages.decode_line`: it is run on lines that the typed decoder refused, and finds at
least one issue exactly in those (a property test holds the two halves together). Rule names are
stable; those that OpenAI's published checker also has keep its names.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import msgspec

from autoclave.data import messages as formats
from autoclave.data.mismatches import Finding, escape, mismatches, type_name, unrecognized
from autoclave.errors import DataIssue

_ROLES = ("system", "developer", "user", "assistant", "tool", "function")
_MESSAGE_KEYS = tuple(formats.Message.__struct_fields__)
_LINE_KEYS = tuple(formats.Conversation.__struct_fields__)
_KEY_OWNERS = {"tool_calls": "assistant", "function_call": "assistant", "tool_call_id": "tool"}
_MSGSPEC_PLACE = re.compile(r" - at `.*`$")
_TOO_DEEP: Finding = (
    "",
    "nested_too_deeply",
    f"The JSON is nested more than {formats.MAX_DEPTH} levels deep.",
    "Flatten the example.",
)


def explain(line: bytes, line_number: int, *, needs_answer: bool = True) -> list[DataIssue]:
    """All issues of a line; empty exactly if `messages.decode_line` accepts it."""
    return [DataIssue(line_number, *finding) for finding in _examine(line, needs_answer)]


def explain_refused(line: bytes, line_number: int, *, needs_answer: bool = True) -> Iterator[DataIssue]:
    """The issues, at least one, of a line that `messages.decode_line` refused. One at a time: a long line can
    have hundreds of thousands."""
    found = False
    for finding in _examine(line, needs_answer):
        found = True
        yield DataIssue(line_number, *finding)
    if not found:
        # Two decoders reach Python's recursion limit at different depths: what the typed one refused for
        # it may pass the other.
        yield DataIssue(line_number, *_TOO_DEEP)


def _examine(line: bytes, needs_answer: bool) -> Iterator[Finding]:
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        message = f"Byte 0x{line[error.start]:02x} at column {error.start + 1} is not valid UTF-8."
        utf16 = line.startswith((b"\xff\xfe", b"\xfe\xff"))
        yield (
            "",
            "invalid_utf8",
            message,
            f"Save the file as UTF-8{' (it looks like UTF-16)' if utf16 else ''}.",
        )
        return
    try:
        value = msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        reason = _MSGSPEC_PLACE.sub("", str(error))
        yield "", "invalid_json", f"The line is not valid JSON: {reason}.", "Write one JSON object per line."
        return
    except RecursionError:
        yield _TOO_DEEP
        return
    if formats.is_deeper(value, formats.MAX_DEPTH):
        yield _TOO_DEEP
        return
    if not isinstance(value, dict):
        yield "", "not_an_object", f"The line is {type_name(value)}.", "Write one JSON object per line."
        return
    if "messages" not in value:
        yield _without_messages(value)
        return
    for key in value:
        if key not in _LINE_KEYS:
            yield unrecognized(f"/{escape(key)}", key, _LINE_KEYS)
    yield from mismatches(value.get("tools"), list[formats.Tool] | None, "/tools")
    yield from mismatches(value.get("functions"), list[formats.FunctionDefinition] | None, "/functions")
    functions = value.get("functions")
    if isinstance(functions, list) and not 1 <= len(functions) <= 128:
        yield "/functions", "wrong_type", f"There are {len(functions)} functions.", "Give 1 to 128, or none."
    yield from mismatches(value.get("parallel_tool_calls"), bool | None, "/parallel_tool_calls")
    yield from _examine_messages(value["messages"], needs_answer)


def _without_messages(value: dict[str, Any]) -> Finding:
    if "prompt" in value and "completion" in value:
        return (
            "",
            "legacy_example",
            'This is the legacy format ("prompt" and "completion"), which is not supported.',
            'Write {"messages": [{"role": "user", "content": PROMPT}, '
            '{"role": "assistant", "content": COMPLETION}]}.',
        )
    if "input" in value and any(key.startswith(("preferred", "non_preferred")) for key in value):
        return (
            "",
            "preference_example",
            "This is a preference (DPO) example; only supervised examples are supported.",
            'Write {"messages": [...]}: the messages of "input", then those of "preferred_output".',
        )
    fix = 'Add "messages": an array of objects with "role" and "content".'
    return "", "missing_messages", 'The object has no "messages".', fix


def _examine_messages(messages: Any, needs_answer: bool) -> Iterator[Finding]:
    if not isinstance(messages, list):
        message = f'"messages" is {type_name(messages)}, not an array.'
        yield "/messages", "wrong_type", message, 'Make "messages" an array of objects.'
        return
    if not messages:
        yield "/messages", "empty_messages", '"messages" is empty.', "Add a user and an assistant message."
        return
    for index, message in enumerate(messages):
        pointer = f"/messages/{index}"
        if isinstance(message, dict):
            yield from _examine_message(message, pointer)
        else:
            text = f"The message is {type_name(message)}, not an object."
            yield pointer, "wrong_type", text, 'Write {"role": ..., "content": ...}.'
    if not needs_answer:
        return
    first = messages[0]
    if isinstance(first, dict) and first.get("role") == "assistant" and not _is_untrained(first):
        yield (
            "/messages/0",
            "answer_to_nothing",
            "The first message is a trained answer, and nothing stands before it.",
            "Put a user or system message before it, or give it weight 0.",
        )
    answers = [m for m in messages if isinstance(m, dict) and m.get("role") == "assistant"]
    if not answers:
        yield (
            "/messages",
            "no_trained_assistant_message",
            "There is no assistant message, so there is nothing to learn.",
            "Add the answer as a message with the role assistant.",
        )
    elif all(map(_is_untrained, answers)):
        yield (
            "/messages",
            "no_trained_assistant_message",
            "Every assistant message has weight 0, so there is nothing to learn.",
            "Give at least one assistant message weight 1, or leave its weight out.",
        )


def _is_untrained(message: dict[str, Any]) -> bool:
    return type(message.get("weight")) is int and message["weight"] == 0


def _examine_message(message: dict[str, Any], pointer: str) -> Iterator[Finding]:
    for key in message:
        if key not in _MESSAGE_KEYS:
            yield unrecognized(f"{pointer}/{escape(key)}", key, _MESSAGE_KEYS)
    yield from mismatches(message.get("name"), str | None, f"{pointer}/name")
    yield from mismatches(message.get("tool_call_id"), str | None, f"{pointer}/tool_call_id")
    yield from mismatches(message.get("tool_calls"), list[formats.ToolCall] | None, f"{pointer}/tool_calls")
    yield from mismatches(
        message.get("function_call"), formats.FunctionCall | None, f"{pointer}/function_call"
    )
    role = message.get("role")
    if "role" not in message:
        yield pointer, "missing_role", 'The message has no "role".', f"Add one of {', '.join(_ROLES)}."
    elif role not in _ROLES:
        found = f'"{role}"' if isinstance(role, str) else type_name(role)
        yield (
            f"{pointer}/role",
            "unrecognized_role",
            f"The role is {found}.",
            f"Use one of {', '.join(_ROLES)}.",
        )
    else:
        yield from _examine_by_role(message, role, pointer)
    yield from _examine_weight(message, role, pointer)
    yield from _examine_content(message, role, pointer)


def _examine_by_role(message: dict[str, Any], role: str, pointer: str) -> Iterator[Finding]:
    for key, owner in _KEY_OWNERS.items():
        if message.get(key) is not None and role != owner:
            yield (
                f"{pointer}/{key}",
                "unrecognized_key",
                f'"{key}" is not a key of a message with the role {role}.',
                f'Remove it; it belongs to messages with the role "{owner}".',
            )
    required = {"tool": "tool_call_id", "function": "name"}.get(role)
    if required and message.get(required) is None:
        text = f'A message with the role {role} needs "{required}".'
        yield pointer, "missing_key", text, f'Add "{required}".'


def _examine_weight(message: dict[str, Any], role: Any, pointer: str) -> Iterator[Finding]:
    weight = message.get("weight")
    if weight is None:
        return
    if type(weight) is not int or weight not in (0, 1):
        shown = msgspec.json.encode(weight).decode()[:40]
        yield (
            f"{pointer}/weight",
            "bad_weight",
            f"The weight is {shown}.",
            "Use the number 1 (train on this message) or 0 (do not).",
        )
    elif role != "assistant":
        text = "Only assistant messages have a weight; others are never trained on."
        yield f"{pointer}/weight", "bad_weight", text, "Remove the weight."


def _examine_content(message: dict[str, Any], role: Any, pointer: str) -> Iterator[Finding]:
    content = message.get("content")
    place = f"{pointer}/content"
    if isinstance(content, list):
        for index, part in enumerate(content):
            if isinstance(part, dict) and isinstance(part.get("type"), str) and part["type"] != "text":
                text = f'Content of the type "{part["type"]}" is not supported.'
                yield f"{place}/{index}/type", "unsupported_content", text, "Use text only."
            else:
                yield from mismatches(part, formats.TextPart, f"{place}/{index}")
        is_empty = all(isinstance(part, dict) and part.get("text") == "" for part in content)
    elif content is None or isinstance(content, str):
        is_empty = not content
    else:
        yield place, "wrong_type", f"The content is {type_name(content)}.", "Make the content a string."
        return
    has_call = bool(message.get("tool_calls")) or message.get("function_call") is not None
    needs_text = role == "user" or (role == "assistant" and not has_call)
    if (needs_text and is_empty) or (content is None and role in _ROLES and role != "assistant"):
        text = "The content is empty." if content is not None else "The message has no content."
        fix = "Add the text of the message."
        if role == "assistant":
            fix = 'Add the text of the answer, or "tool_calls".'
        yield (place if "content" in message else pointer), "missing_content", text, fix
