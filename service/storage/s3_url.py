"""What a URL of a bucket says: `s3://bucket/prefix?endpoint=https://s3.example.org&region=eu-west-1`.

Credentials never stand in it. They, and what it leaves out, come from the variables that Amazon's own tools
read (`ENVIRONMENT`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

ENVIRONMENT = frozenset(
    {
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "AWS_REGION",
        "AWS_DEFAULT_REGION",
        "AWS_ENDPOINT_URL",
        "AWS_ENDPOINT_URL_S3",
        "AWS_ROLE_ARN",
        "AWS_ROLE_SESSION_NAME",
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
        "AWS_CONTAINER_CREDENTIALS_FULL_URI",
        "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
        "SSL_CERT_FILE",
    }
)
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_SEGMENT = re.compile(r"[A-Za-z0-9._-]+")
_ENDPOINT = re.compile(r"https?://[A-Za-z0-9.\-\[\]:]+/?")
_OPTIONS = ("endpoint", "region", "path_style", "ca_file", "timeout_seconds", "retry_seconds")


@dataclass(frozen=True)
class S3Place:
    bucket: str
    prefix: str
    """Without slashes at its ends; empty: the whole bucket."""
    endpoint: str | None
    """None: Amazon's, of the region."""
    region: str
    path_style: bool
    """The bucket in the path, not in the host's name."""
    ca_file: Path | None
    """PEM file of authorities to trust besides the public ones."""
    timeout_seconds: float
    """Longest silence of the store before a request is given up."""
    retry_seconds: float
    """How long a failed request is tried again."""


def s3_place(url: str, environment: Mapping[str, str] = os.environ) -> S3Place:
    """Raises ValueError; the message repeats nothing of the URL, which may hold a password."""
    parts = urlsplit(url)
    if parts.username is not None or parts.password is not None or parts.fragment:
        raise _wrong("holds credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY instead")
    if _BUCKET.fullmatch(parts.netloc) is None:
        raise _wrong("names no valid bucket; use s3://bucket or s3://bucket/prefix")
    prefix = unquote(parts.path).strip("/")
    if prefix and not all(_SEGMENT.fullmatch(s) and set(s) != {"."} for s in prefix.split("/")):
        raise _wrong("has a prefix with other characters than letters, digits, '.', '_', '-' and '/'")
    try:
        pairs = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    except ValueError:
        raise _wrong("has options that are not name=value with & between") from None
    options = dict(pairs)
    if len(options) < len(pairs) or not options.keys() <= set(_OPTIONS):
        raise _wrong(f"has an option that does not exist, or one twice; there are {', '.join(_OPTIONS)}")
    endpoint = (
        options.get("endpoint")
        or environment.get("AWS_ENDPOINT_URL_S3")
        or environment.get("AWS_ENDPOINT_URL")
        or None
    )
    if endpoint is not None and _ENDPOINT.fullmatch(endpoint) is None:
        raise _wrong(
            "or AWS_ENDPOINT_URL has an endpoint that is not http://host[:port] or https://host[:port]"
        )
    region = options.get("region") or environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION")
    return S3Place(
        bucket=parts.netloc,
        prefix=prefix,
        endpoint=None if endpoint is None else endpoint.rstrip("/"),
        region=region or "us-east-1",
        path_style=_flag(options.get("path_style"), default=endpoint is not None),
        ca_file=_ca_file(options.get("ca_file")),
        timeout_seconds=_seconds(options, "timeout_seconds", default=15.0),
        retry_seconds=_seconds(options, "retry_seconds", default=20.0),
    )


def _wrong(what: str) -> ValueError:
    return ValueError(f"STORAGE_URL {what} (docs/configuration.md)")


def _flag(text: str | None, *, default: bool) -> bool:
    if text is None:
        return default
    if text not in ("true", "false"):
        raise _wrong("has a path_style that is neither true nor false")
    return text == "true"


def _ca_file(text: str | None) -> Path | None:
    if text is None:
        return None
    path = Path(text)
    if not path.is_absolute() or not path.is_file():
        raise _wrong("has a ca_file that is not the absolute path of a file")
    return path


def _seconds(options: Mapping[str, str], name: str, *, default: float) -> float:
    try:
        seconds = float(options.get(name, default))
    except ValueError:
        seconds = 0.0
    if not 0.1 <= seconds <= 280.0:
        raise _wrong(f"has {name} that is not a number from 0.1 to 280")
    return seconds
