"""An OpenAI-compatible chat endpoint (POST .../v1/chat/completions), asked one thing at a time; no torch."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from pydantic import Field

from autoclave.errors import JudgeError
from autoclave.json_post import JsonPost, Wording, key_of
from autoclave.spec import Spec

_WORDING = Wording(
    JudgeError,
    "chat endpoint",
    missing="gave no verdict",
    consequence="Nothing was scored; what was compared is kept, run again to go on.",
    hints={404: " Is the path right? It often ends in /v1/chat/completions."},
)


class ChatEndpointSpec(Spec):
    """`url` ends in /v1/chat/completions as a rule. `key_env` names the environment variable with the key.
    `max_tokens` None is not sent. `parallel` requests are under way at once."""

    url: str
    model: str
    key_env: str | None = None
    timeout_seconds: float = Field(default=120.0, gt=0.0, le=3600.0)
    max_attempts: int = Field(default=8, ge=1, le=100)
    max_tokens: int | None = Field(default=1024, ge=1)
    parallel: int = Field(default=4, ge=1, le=64)


class ChatEndpoint:
    def __init__(self, spec: ChatEndpointSpec, *, sleep: Callable[[float], None] = time.sleep) -> None:
        """Raises JudgeError for a URL that is none, one that holds a password, and a key that is not set."""
        self.spec = spec
        self._post = JsonPost(
            spec.url,
            _WORDING,
            key=key_of(spec.key_env, _WORDING),
            timeout_seconds=spec.timeout_seconds,
            max_attempts=spec.max_attempts,
            sleep=sleep,
        )

    def ask(self, messages: Sequence[dict[str, str]]) -> str:
        """What it says, at temperature 0. Lost connections, silence and busy servers are tried again. Raises
        JudgeError when the attempts are used up, and for an answer that is no chat completion."""
        values: dict[str, Any] = {"model": self.spec.model, "messages": list(messages), "temperature": 0}
        if self.spec.max_tokens is not None:
            values["max_tokens"] = self.spec.max_tokens
        return self._text_of(self._post.send(values))

    def _text_of(self, content: bytes) -> str:
        try:
            choices = msgspec.json.decode(content, type=_Completion).choices
        except (msgspec.DecodeError, UnicodeDecodeError):
            choices = []
        if not choices:
            raise JudgeError(f"the chat endpoint {self._post.host} did not answer with a chat completion.")
        return choices[0].message.content or ""


class _Message(msgspec.Struct, frozen=True):
    content: str | None = None


class _Choice(msgspec.Struct, frozen=True):
    message: _Message


class _Completion(msgspec.Struct, frozen=True):
    choices: list[_Choice]
