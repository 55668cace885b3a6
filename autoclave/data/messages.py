"""One chat example and its messages as typed objects, decoded from one line of JSON.

Decided here, because the format does not say:
- Keys that the format does not know are refused: `"wieght": 0` must not train what its author excluded.
  A known key with the value null counts as absent.
- If a key occurs twice in an object, the last one counts, as in every common JSON reader.
- JSON is nested at most MAX_DEPTH levels deep. Only `parameters` of a tool can be deeper than the format
  itself; a bound of our own gives the same answer on every Python and however deep the caller's stack is.
- The first message is no trained answer: nothing stands before it that it could answer, and chat templates
  cannot write the text before it. With weight 0 it may be an assistant's.
- `functions` and `function_call`, which OpenAI deprecated, are accepted and mean `tools` and `tool_calls`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec

MAX_DEPTH = 64
_PARAMETERS_DEPTH = 5  # how deep `parameters` stands: line, tools, tool, function, parameters

Role = Literal["system", "developer", "user", "assistant", "tool", "function"]
FunctionName = Annotated[str, msgspec.Meta(pattern=r"^[a-zA-Z0-9_-]{1,64}\Z")]


# Decoded values form trees, never cycles, so the cyclic garbage collector need not look at them.
class _Struct(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True, gc=False):
    pass


class TextPart(_Struct):
    type: Literal["text"]
    text: str


class FunctionCall(_Struct):
    """`arguments` is JSON in a string, as models write it; it is not parsed here."""

    name: str
    arguments: str


class ToolCall(_Struct):
    id: str
    type: Literal["function"]
    function: FunctionCall


class FunctionDefinition(_Struct):
    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(_Struct):
    type: Literal["function"]
    function: FunctionDefinition


class Message(_Struct):
    role: Role
    content: str | list[TextPart] | None = None
    name: str | None = None
    weight: Literal[0, 1] | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    function_call: FunctionCall | None = None

    @property
    def text(self) -> str:
        """The content as one string; text parts are joined without a separator."""
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content or ""

    @property
    def is_trained(self) -> bool:
        return self.role == "assistant" and self.weight != 0


class Conversation(_Struct):
    messages: list[Message]
    tools: list[Tool] | None = None
    parallel_tool_calls: bool | None = None
    functions: Annotated[list[FunctionDefinition], msgspec.Meta(min_length=1, max_length=128)] | None = None

    @property
    def has_trained_message(self) -> bool:
        return any(message.is_trained for message in self.messages)


_decoder = msgspec.json.Decoder(Conversation)


def _message_is_valid(message: Message) -> bool:
    role = message.role
    if role == "assistant":
        has_call = bool(message.tool_calls) or message.function_call is not None
        return bool(message.text or has_call) and message.tool_call_id is None
    if message.weight is not None or message.tool_calls is not None or message.function_call is not None:
        return False
    if message.content is None or (role == "user" and not message.text):
        return False
    if role == "tool":
        return message.tool_call_id is not None
    if role == "function" and message.name is None:
        return False
    return message.tool_call_id is None


def is_deeper(value: Any, levels: int) -> bool:
    """Whether arrays and objects are nested more than `levels` deep in a decoded value. Uses no recursion."""
    level = [value] if isinstance(value, list | dict) else []
    for _ in range(levels):
        level = [
            item
            for container in level
            for item in (container.values() if isinstance(container, dict) else container)
            if isinstance(item, list | dict)
        ]
        if not level:
            return False
    return bool(level)


def definitions_are_shallow(
    tools: Sequence[Tool] | None, functions: Sequence[FunctionDefinition] | None
) -> bool:
    """Whether the `parameters` of all functions keep within MAX_DEPTH."""
    if tools is None and functions is None:
        return True
    return not any(
        is_deeper(function.parameters, MAX_DEPTH + 1 - depth)
        for depth, found in (
            (_PARAMETERS_DEPTH, [tool.function for tool in tools or ()]),
            (_PARAMETERS_DEPTH - 1, functions or ()),
        )
        for function in found
    )


def decode_line(line: bytes, *, needs_answer: bool = True) -> Conversation | None:
    """The conversation in one line, or None if it breaks a rule (`rules.explain` then says which).

    `needs_answer=False` also accepts a conversation in which nothing is trained (evaluation prompts).
    """
    try:
        try:
            conversation = _decoder.decode(line)
        except msgspec.ValidationError:
            # Of a key that occurs twice, the typed decoder checks both values; only the last one counts.
            conversation = msgspec.convert(msgspec.json.decode(line), Conversation)
    except (ValueError, RecursionError):
        return None
    if not definitions_are_shallow(conversation.tools, conversation.functions):
        return None
    if not conversation.messages or not all(map(_message_is_valid, conversation.messages)):
        return None
    if needs_answer and (conversation.messages[0].is_trained or not conversation.has_trained_message):
        return None
    return conversation
