"""Requests to the API, and its errors in one line each. The key goes to this one server and nowhere else:
redirects are not followed, and it stands in no message."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import httpx

from workers.jobs_cli.errors import RefusedError, UnreachableError
from workers.jobs_cli.formats import clean

TIMEOUT = httpx.Timeout(60.0, connect=10.0)
SILENCE_SECONDS = 40.0
"""An event stream says something every 15 seconds: after this long it is dead."""
_SHOWN_ISSUES = 20


class Client:
    """`base_url` ends in `/v1`. `key_from` is where the key came from, for messages."""

    def __init__(self, base_url: str, key: str, *, key_from: str) -> None:
        self.base_url = base_url
        self._key_from = key_from
        self._http = httpx.Client(
            base_url=base_url,
            headers={"Authorization": f"Bearer {key}", "User-Agent": "autoclave-jobs"},
            timeout=TIMEOUT,
            # No proxy leads to this machine.
            trust_env=not _is_loopback(httpx.URL(base_url).host),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def get(self, path: str, params: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Raises RefusedError, UnreachableError, as every method does."""
        return self._json(self._send("GET", path, params=dict(params or {})))

    def head(self, path: str) -> httpx.Headers:
        with self._errors():
            response = self._http.head(path)
        if response.status_code >= 300:
            self._send("GET", path)  # the answer to HEAD has no body that could say why
            self._raise_for(response)
        return response.headers

    def text(self, path: str, *, accept: str) -> tuple[str, str]:
        """What it is (Content-Type) and the text."""
        response = self._send("GET", path, headers={"Accept": accept})
        return response.headers.get("content-type", ""), response.text

    def post(self, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        return self._json(self._send("POST", path, json=None if body is None else dict(body)))

    def upload(self, path: Path) -> dict[str, Any]:
        """The file object of a training file. Raises OSError if it cannot be read."""
        with path.open("rb") as file:
            return self._json(
                self._send(
                    "POST",
                    "/files",
                    data={"purpose": "fine-tune"},
                    files={"file": (path.name, file, "application/jsonl")},
                    timeout=httpx.Timeout(600.0, connect=10.0),
                )
            )

    @contextmanager
    def stream(
        self,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        silence_seconds: float = SILENCE_SECONDS,
    ) -> Iterator[httpx.Response]:
        """The answer before its body was read. What breaks while it is read is an UnreachableError too."""
        timeout = httpx.Timeout(silence_seconds, connect=10.0)
        with (
            self._errors(),
            self._http.stream(
                "GET", path, params=dict(params or {}), headers=dict(headers or {}), timeout=timeout
            ) as response,
        ):
            if response.status_code >= 300:
                response.read()
                self._raise_for(response)
            yield response

    def _send(self, method: str, path: str, **options: Any) -> httpx.Response:
        with self._errors():
            response = self._http.request(method, path, **options)
        if response.status_code >= 300:
            self._raise_for(response)
        return response

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except httpx.TimeoutException as error:
            raise UnreachableError(f"{self.base_url} does not answer") from error
        except (httpx.TransportError, httpx.DecodingError) as error:
            raise UnreachableError(f"cannot reach {self.base_url}: {error}") from error

    def _json(self, response: httpx.Response) -> dict[str, Any]:
        try:
            answer = response.json()
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise RefusedError(f"{response.url} answered no JSON; is {self.base_url} an Autoclave API?")
        return answer

    def _raise_for(self, response: httpx.Response) -> None:
        status = response.status_code
        error = _error_of(response)
        message = clean(str(error.get("message") or "").strip())
        if not error:
            message = f"{response.url} answered {status}; is {self.base_url} an Autoclave API?"
        elif status == 401:
            message = f"{self.base_url} refuses the key from {self._key_from}: {message}"
        message += "".join(_shown_issue(issue) for issue in error.get("issues", [])[:_SHOWN_ISSUES])
        code = error.get("code")
        may_help = status >= 500 or (status == 429 and response.headers.get("x-should-retry") != "false")
        if may_help and code != "internal_error":
            raise UnreachableError(message, retry_after_seconds=_seconds(response.headers.get("retry-after")))
        request_id = response.headers.get("x-request-id")
        if status >= 500 and request_id:
            message += f" (request id {request_id})"
        raise RefusedError(message, http_status=status, code=code)


def path_of(job_id: str, *rest: str) -> str:
    """`/fine_tuning/jobs/<id>/...`, whatever characters the id was typed with. Raises RefusedError."""
    if not job_id.strip(".") or not job_id.isprintable():
        raise RefusedError(f"{clean(job_id)!r} is no job id; `autoclave jobs list` shows them")
    return "/".join(["/fine_tuning/jobs", quote(job_id, safe=""), *(quote(part, safe="") for part in rest)])


def checked_base_url(text: str) -> str:
    """With `/v1` if no path was given, without a slash at the end. Raises RefusedError."""
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL:
        url = httpx.URL("")
    if url.scheme not in ("http", "https") or not url.host or url.query or url.fragment or url.userinfo:
        raise RefusedError(f"{clean(text)!r} is no base URL; it looks like http://127.0.0.1:8000/v1")
    path = url.path.rstrip("/") or "/v1"
    return str(url.copy_with(path=path))


def checked_key(text: str, *, key_from: str) -> str:
    """Raises RefusedError, which does not repeat it."""
    key = text.strip()
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise RefusedError(f"{key_from} holds no API key (sk-...)")
    return key


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _error_of(response: httpx.Response) -> dict[str, Any]:
    try:
        error = response.json()["error"]
    except (ValueError, KeyError, TypeError):
        return {}
    return error if isinstance(error, dict) else {}


def _shown_issue(issue: Mapping[str, Any]) -> str:
    at = f" at {issue['pointer']}" if issue.get("pointer") else ""
    return clean(f"\n  line {issue.get('line')}{at}: {issue.get('message')} {issue.get('fix')}")


def _seconds(header: str | None) -> float | None:
    try:
        return None if header is None else max(0.0, float(header))
    except ValueError:
        return None
