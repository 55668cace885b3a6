"""Lines of a chat dataset that are valid, counted quickly.

Most lines of most files are valid, so `ConversationChecker` asks here first and looks more closely only at
the line where the counting stops. The rules of `messages.decode_line` are written as types that msgspec
checks while it decodes: one struct per role instead of Python code per message. These types accept
less than the rules allow (text parts, for one, are left to `decode_line`) and never more; a test
holds the two together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec

from autoclave.data.messages import FunctionCall, FunctionDefinition, Tool, ToolCall, definitions_are_shallow

_MAX_REMEMBERED = 64
_MAX_REMEMBERED_BYTES = 1 << 14
_NULL = msgspec.Raw(b"null")
_Text = Annotated[str, msgspec.Meta(min_length=1)]
_Functions = Annotated[list[FunctionDefinition], msgspec.Meta(min_length=1, max_length=128)]


# Decoded values form trees, never cycles, so the cyclic garbage collector need not look at them.
class _Role(msgspec.Struct, forbid_unknown_fields=True, gc=False, tag_field="role"):
    pass


class _System(_Role, tag="system"):
    content: str
    name: str | None = None


class _Developer(_Role, tag="developer"):
    content: str
    name: str | None = None


class _User(_Role, tag="user"):
    content: _Text
    name: str | None = None


class _Tool(_Role, tag="tool"):
    content: str
    tool_call_id: str
    name: str | None = None


class _Function(_Role, tag="function"):
    content: str
    name: str


class _Answer(_Role, tag="assistant"):
    content: _Text
    name: str | None = None
    weight: Literal[0, 1] | None = None


class _Reply(_Role, tag="assistant"):
    """An answer that may be a call. `__post_init__` costs more than all of `_Answer`'s checks."""

    content: _Text | None = None
    name: str | None = None
    weight: Literal[0, 1] | None = None
    tool_calls: list[ToolCall] | None = None
    function_call: FunctionCall | None = None

    def __post_init__(self) -> None:
        if not (self.content or self.tool_calls or self.function_call is not None):
            raise ValueError("neither text nor a call")


class _Chat(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    messages: Annotated[list[_System | _Developer | _User | _Answer], msgspec.Meta(min_length=1)]


class _ToolChat(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    messages: Annotated[
        list[_System | _Developer | _User | _Tool | _Function | _Reply],
        msgspec.Meta(min_length=1),
    ]
    # Not decoded with the line: see `_Definitions`.
    tools: msgspec.Raw = _NULL
    parallel_tool_calls: bool | None = None
    functions: msgspec.Raw = _NULL


_decode_chat = msgspec.json.Decoder(_Chat).decode
_decode_tool_chat = msgspec.json.Decoder(_ToolChat).decode
_decode_tools = msgspec.json.Decoder(list[Tool] | None).decode
_decode_functions = msgspec.json.Decoder(_Functions | None).decode


class _Definitions:
    """Remembers which texts of `tools` and `functions` are valid: many lines bring the same ones."""

    def __init__(self) -> None:
        self._valid_tools: set[bytes] = {bytes(_NULL)}
        self._valid_functions: set[bytes] = {bytes(_NULL)}

    def check(self, chat: _ToolChat) -> None:
        """Raises ValueError or RecursionError."""
        tools, functions = bytes(chat.tools), bytes(chat.functions)
        if tools not in self._valid_tools:
            if not definitions_are_shallow(_decode_tools(tools), None):
                raise ValueError("nested too deeply")
            self._remember(tools, self._valid_tools)
        if functions not in self._valid_functions:
            if not definitions_are_shallow(None, _decode_functions(functions)):
                raise ValueError("nested too deeply")
            self._remember(functions, self._valid_functions)

    def _remember(self, text: bytes, valid: set[bytes]) -> None:
        if len(valid) < _MAX_REMEMBERED and len(text) <= _MAX_REMEMBERED_BYTES:
            valid.add(text)


class FastLines:
    """For the lines of one file. Remembers whether the file uses tools, so that the cheaper types are not
    tried in vain on every line."""

    def __init__(self, *, needs_answer: bool = True) -> None:
        self._needs_answer = needs_answer
        self._uses_tools = False
        self._definitions = _Definitions()

    def count_valid(self, lines: Sequence[bytes]) -> tuple[int, int]:
        """(lines, messages) from the first line up to one that is broken, or that only `decode_line` can
        tell to be valid."""
        if self._uses_tools:
            return self._count_tool_chats(lines)
        num_lines, num_messages = self._count_chats(lines)
        if num_lines < len(lines):
            more_lines, more_messages = self._count_tool_chats(lines[num_lines:])
            self._uses_tools = more_lines > 0
            return num_lines + more_lines, num_messages + more_messages
        return num_lines, num_messages

    def _count_chats(self, lines: Sequence[bytes]) -> tuple[int, int]:
        num_lines = num_messages = 0
        needs_answer = self._needs_answer
        try:
            for chat in map(_decode_chat, lines):
                messages = chat.messages
                # Most conversations end with an answer; asking that first saves a call per line.
                last = messages[-1]
                trains = (type(last) is _Answer and last.weight != 0) or _trains(messages)
                if needs_answer and (type(messages[0]) is _Answer or not trains):
                    break
                num_lines += 1
                num_messages += len(messages)
        except (ValueError, RecursionError):
            pass
        return num_lines, num_messages

    def _count_tool_chats(self, lines: Sequence[bytes]) -> tuple[int, int]:
        num_lines = num_messages = 0
        try:
            for chat in map(_decode_tool_chat, lines):
                if self._needs_answer and (type(chat.messages[0]) is _Reply or not _trains(chat.messages)):
                    break
                self._definitions.check(chat)
                num_lines += 1
                num_messages += len(chat.messages)
        except (ValueError, RecursionError):
            pass
        return num_lines, num_messages


def _trains(messages: Sequence[_Role]) -> bool:
    return any(isinstance(message, _Answer | _Reply) and message.weight != 0 for message in messages)
