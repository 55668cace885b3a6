"""One POST of JSON to an endpoint that may be busy or away for a moment: tried again, with a growing wait.

Redirects are not followed, because the key would go with them. What the server says about a failure is not
repeated, because it may quote the prompt: an error names the host, the status and the number of attempts.
"""

from __future__ import annotations

import http.client
import json
import logging
import math
import random
import time
from collections.abc import Callable
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import HTTPRedirectHandler, OpenerDirector, Request, build_opener

from autoclave.errors import EndpointError

logger = logging.getLogger(__name__)

_FIRST_WAIT_SECONDS = 0.5
_LONGEST_WAIT_SECONDS = 60.0
_MAX_RESPONSE_BYTES = 64 << 20
_RETRIED_STATUS = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})


class _NoRedirects(HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        """None: the redirect becomes an HTTPError."""


class JsonPost:
    """May be called from several threads."""

    def __init__(
        self,
        url: str,
        *,
        host: str,
        key: str | None,
        timeout_seconds: float,
        max_attempts: int,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._url, self._host, self._key = url, host, key
        self._timeout_seconds, self._max_attempts, self._sleep = timeout_seconds, max_attempts, sleep
        self._opener: OpenerDirector = build_opener(_NoRedirects())

    def send(self, values: dict[str, Any]) -> Any:
        """The JSON of the answer. Raises EndpointError."""
        body = json.dumps(values).encode()
        reason = ""
        for attempt in range(1, self._max_attempts + 1):
            wait_seconds = 0.0
            try:
                return self._parsed(self._post(body))
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
            if attempt == self._max_attempts:
                break
            backoff = _FIRST_WAIT_SECONDS * 2 ** (attempt - 1) * random.uniform(0.75, 1.25)  # noqa: S311
            wait_seconds = min(max(wait_seconds, backoff), _LONGEST_WAIT_SECONDS)
            logger.warning(
                "endpoint %s: %s; attempt %d of %d, next one in %.1f s",
                *(self._host, reason, attempt, self._max_attempts, wait_seconds),
            )
            self._sleep(wait_seconds)
        raise self._failure(reason, self._max_attempts)

    def _post(self, body: bytes) -> bytes:
        headers = {"content-type": "application/json", "accept": "application/json"}
        if self._key is not None:
            headers["authorization"] = f"Bearer {self._key}"
        request = Request(self._url, data=body, headers=headers, method="POST")  # noqa: S310  # http(s) alone
        with self._opener.open(request, timeout=self._timeout_seconds) as response:
            content: bytes = response.read(_MAX_RESPONSE_BYTES + 1)
        if len(content) > _MAX_RESPONSE_BYTES:
            raise EndpointError(f"the endpoint {self._host} answered with too many bytes.")
        return content

    def _parsed(self, content: bytes) -> Any:
        try:
            return json.loads(content)
        except ValueError:
            raise EndpointError(
                f"the endpoint {self._host} answered with something that is no JSON."
            ) from None

    def _failure(self, reason: str, attempts: int) -> EndpointError:
        hint = {
            "status 400": " Does it know the model and take prompts of this length?",
            "status 401": " Is the key right, and key_env set?",
            "status 403": " May the key do this?",
            "status 404": " Are path and model right?",
        }.get(reason, "")
        return EndpointError(
            f"the endpoint {self._host} gave no answer: {reason} after {attempts} attempt"
            f"{'s' if attempts > 1 else ''}. Nothing was scored.{hint}"
        )


def _retry_after_seconds(error: HTTPError) -> float:
    try:
        seconds = float(error.headers.get("retry-after", ""))
    except ValueError:  # also a date, which is rare; the backoff will do
        return 0.0
    return seconds if math.isfinite(seconds) and seconds > 0 else 0.0
