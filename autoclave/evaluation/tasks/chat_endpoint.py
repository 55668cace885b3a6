"""An OpenAI-compatible chat endpoint (POST .../v1/chat/completions), asked one thing at a time. Torch-free.

Redirects are not followed, because the key would go with them. What the server says about a failure is not
repeated, because it may quote the text: an error names the host, the status and the number of attempts.
"""

from __future__ import annotations

import http.client
import json
import logging
import math
import os
import random
import time
from collections.abc import Callable, Sequence
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

import msgspec
from pydantic import Field

from autoclave.errors import JudgeError
from autoclave.spec import Spec

logger = logging.getLogger(__name__)

_FIRST_WAIT_SECONDS = 0.5
_LONGEST_WAIT_SECONDS = 60.0
_MAX_RESPONSE_BYTES = 16 << 20
_RETRIED_STATUS = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})


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


class _NoRedirects(HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        """None: the redirect becomes an HTTPError."""


class ChatEndpoint:
    def __init__(self, spec: ChatEndpointSpec, *, sleep: Callable[[float], None] = time.sleep) -> None:
        """Raises JudgeError for a URL that is none, one that holds a password, and a key that is not set."""
        self.spec = spec
        self._host = _checked_host(spec.url)
        self._key = _key(spec.key_env)
        self._sleep = sleep
        self._opener = build_opener(_NoRedirects())

    def ask(self, messages: Sequence[dict[str, str]]) -> str:
        """What it says, at temperature 0. Lost connections, silence and busy servers are tried again. Raises
        JudgeError when the attempts are used up, and for an answer that is no chat completion."""
        values: dict[str, Any] = {"model": self.spec.model, "messages": list(messages), "temperature": 0}
        if self.spec.max_tokens is not None:
            values["max_tokens"] = self.spec.max_tokens
        body, reason = json.dumps(values).encode(), ""
        for attempt in range(1, self.spec.max_attempts + 1):
            wait_seconds = 0.0
            try:
                return self._text_of(self._post(body))
            except HTTPError as error:
                with error:
                    reason = f"status {error.code}"
                    if error.code not in _RETRIED_STATUS:
                        raise self._failure(reason, attempt) from None
                    wait_seconds = _retry_after_seconds(error)
            except (OSError, http.client.HTTPException) as error:
                cause = error.reason if isinstance(error, URLError) else error
                timed_out = isinstance(cause, TimeoutError)
                reason = "no answer in time" if timed_out else f"no connection ({type(cause).__name__})"
            if attempt < self.spec.max_attempts:
                backoff = _FIRST_WAIT_SECONDS * 2 ** (attempt - 1) * random.uniform(0.75, 1.25)  # noqa: S311
                wait_seconds = min(max(wait_seconds, backoff), _LONGEST_WAIT_SECONDS)
                logger.warning(
                    "chat endpoint %s: %s; next attempt in %.1f s", self._host, reason, wait_seconds
                )
                self._sleep(wait_seconds)
        raise self._failure(reason, self.spec.max_attempts)

    def _post(self, body: bytes) -> bytes:
        headers = {"content-type": "application/json", "accept": "application/json"}
        if self._key is not None:
            headers["authorization"] = f"Bearer {self._key}"
        request = Request(self.spec.url, data=body, headers=headers, method="POST")  # noqa: S310 - http(s) alone
        with self._opener.open(request, timeout=self.spec.timeout_seconds) as response:
            content: bytes = response.read(_MAX_RESPONSE_BYTES + 1)
        if len(content) > _MAX_RESPONSE_BYTES:
            raise JudgeError(f"the chat endpoint {self._host} answered with too many bytes.")
        return content

    def _text_of(self, content: bytes) -> str:
        try:
            choices = msgspec.json.decode(content, type=_Completion).choices
        except (msgspec.DecodeError, UnicodeDecodeError):
            choices = []
        if not choices:
            raise JudgeError(f"the chat endpoint {self._host} did not answer with a chat completion.")
        return choices[0].message.content or ""

    def _failure(self, reason: str, attempts: int) -> JudgeError:
        hint = {
            "status 401": " Is the key right, and key_env set?",
            "status 403": " May the key do this?",
            "status 404": " Is the path right? It often ends in /v1/chat/completions.",
        }.get(reason, "")
        plural = "s" if attempts > 1 else ""
        return JudgeError(
            f"the chat endpoint {self._host} gave no verdict: {reason} after {attempts} attempt{plural}. "
            f"Nothing was scored; what was compared is kept, run again to go on.{hint}"
        )


class _Message(msgspec.Struct, frozen=True):
    content: str | None = None


class _Choice(msgspec.Struct, frozen=True):
    message: _Message


class _Completion(msgspec.Struct, frozen=True):
    choices: list[_Choice]


def _checked_host(url: str) -> str:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    if parts.username is not None or parts.password is not None:
        raise JudgeError("the URL of a chat endpoint must not hold a user name or password: use key_env.")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise JudgeError(f'"{url}" is no http or https URL of a chat endpoint.')
    return parts.hostname if port is None else f"{parts.hostname}:{port}"


def _key(variable: str | None) -> str | None:
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise JudgeError(f"the environment variable {variable} (key_env) is not set, or empty.")
    if not key.isascii() or not key.isprintable():
        raise JudgeError(f"the environment variable {variable} holds no key that a header can carry.")
    return key


def _retry_after_seconds(error: HTTPError) -> float:
    try:
        seconds = float(error.headers.get("retry-after", ""))
    except ValueError:  # also a date; the backoff will do
        return 0.0
    return seconds if math.isfinite(seconds) and seconds > 0 else 0.0
