"""One POST of JSON to an endpoint that may be busy or away for a moment: tried again, with a growing wait.

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
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import SplitResult, urlsplit
from urllib.request import HTTPRedirectHandler, OpenerDirector, Request, build_opener

from autoclave.errors import InputError

logger = logging.getLogger(__name__)

_FIRST_WAIT_SECONDS = 0.5
_LONGEST_WAIT_SECONDS = 60.0
_MAX_RESPONSE_BYTES = 64 << 20
_RETRIED_STATUS = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
_HINTS = {401: " Is the key right, and key_env set?", 403: " May the key do this?"}


@dataclass(frozen=True)
class Wording:
    """How errors speak: "the {endpoint} example.org {missing}: status 404 after 1 attempt. {consequence}",
    with a hint for some statuses."""

    error: type[InputError]
    endpoint: str
    away: type[InputError] | None = None
    """Raised instead of `error` when the attempts are used up: later it may answer."""
    missing: str = "gave no answer"
    consequence: str = "Nothing was scored."
    hints: Mapping[int, str] = field(default_factory=dict)


class _NoRedirects(HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        """None: the redirect becomes an HTTPError."""


class JsonPost:
    """May be called from several threads."""

    def __init__(
        self,
        url: str,
        wording: Wording,
        *,
        key: str | None,
        timeout_seconds: float,
        max_attempts: int,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Raises the wording's error for a URL that is none or holds a password."""
        self._url, self._wording, self._key = url, wording, key
        self.host = host_of(checked_url(url, wording))
        self._timeout_seconds, self._max_attempts, self._sleep = timeout_seconds, max_attempts, sleep
        self._opener: OpenerDirector = build_opener(_NoRedirects())

    def send(self, values: dict[str, Any]) -> bytes:
        """The body of the answer. Lost connections, silence and busy servers are tried again; raises the
        wording's error when the attempts are used up, and at once for any other status."""
        body = json.dumps(values).encode()
        reason = ""
        for attempt in range(1, self._max_attempts + 1):
            wait_seconds = 0.0
            try:
                return self._post(body)
            except HTTPError as error:
                with error:
                    reason = f"status {error.code}"
                    if error.code not in _RETRIED_STATUS:
                        raise self._failure(reason, attempt, status=error.code) from None
                    wait_seconds = _retry_after_seconds(error)
            except (OSError, http.client.HTTPException) as error:
                cause = error.reason if isinstance(error, URLError) else error
                timed_out = isinstance(cause, TimeoutError)
                reason = "no answer in time" if timed_out else f"no connection ({type(cause).__name__})"
            if attempt == self._max_attempts:
                break
            backoff = _FIRST_WAIT_SECONDS * 2 ** (attempt - 1) * random.uniform(0.75, 1.25)  # noqa: S311
            wait_seconds = min(max(wait_seconds, backoff), _LONGEST_WAIT_SECONDS)
            logger.warning(
                "%s %s: %s; attempt %d of %d, next one in %.1f s",
                *(self._wording.endpoint, self.host, reason, attempt, self._max_attempts, wait_seconds),
            )
            self._sleep(wait_seconds)
        raise self._failure(reason, self._max_attempts, error=self._wording.away)

    def _post(self, body: bytes) -> bytes:
        headers = {"content-type": "application/json", "accept": "application/json"}
        if self._key is not None:
            headers["authorization"] = f"Bearer {self._key}"
        request = Request(self._url, data=body, headers=headers, method="POST")  # noqa: S310  # http(s) alone
        with self._opener.open(request, timeout=self._timeout_seconds) as response:
            content: bytes = response.read(_MAX_RESPONSE_BYTES + 1)
        if len(content) > _MAX_RESPONSE_BYTES:
            words = self._wording
            raise words.error(f"the {words.endpoint} {self.host} answered with too many bytes.")
        return content

    def _failure(
        self, reason: str, attempts: int, *, status: int = 0, error: type[InputError] | None = None
    ) -> InputError:
        words, plural = self._wording, "s" if attempts > 1 else ""
        hint = words.hints.get(status, _HINTS.get(status, ""))
        return (error or words.error)(
            f"the {words.endpoint} {self.host} {words.missing}: {reason} after {attempts} attempt{plural}. "
            f"{words.consequence}{hint}"
        )


def checked_url(url: str, wording: Wording) -> SplitResult:
    """Raises the wording's error for a URL that is none, or holds a user name or password: it would stand in
    reports and logs, so it is not repeated here either."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        parts = urlsplit("")
    if parts.username is not None or parts.password is not None:
        raise wording.error(
            f"the URL of a {wording.endpoint} must not hold a user name or password: put the key into an "
            "environment variable and name it with key_env."
        )
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise wording.error(f'"{url}" is no http or https URL of a {wording.endpoint}.')
    return parts


def host_of(parts: SplitResult) -> str:
    """With its port, if the URL names one."""
    host = parts.hostname or ""
    return host if parts.port is None else f"{host}:{parts.port}"


def key_of(variable: str | None, wording: Wording) -> str | None:
    """Of this environment variable. Raises the wording's error if it is not set, or no key."""
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise wording.error(f"the environment variable {variable} (key_env) is not set, or empty.")
    if not key.isascii() or not key.isprintable():
        raise wording.error(f"the environment variable {variable} holds no key that a header can carry.")
    return key


def _retry_after_seconds(error: HTTPError) -> float:
    try:
        seconds = float(error.headers.get("retry-after", ""))
    except ValueError:  # also a date, which is rare; the backoff will do
        return 0.0
    return seconds if math.isfinite(seconds) and seconds > 0 else 0.0
