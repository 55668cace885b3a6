"""What a store that fails is called, and why it failed in words that hold no credential.

What S3 answers is quoted nowhere: its errors may repeat the key id, the signed string and the URL.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError

# What the system (EFBIG, ENOSPC, EDQUOT) and S3-compatible stores say when there is no room left.
_NO_ROOM = re.compile(
    r"os error (?:27|28|122)\b|StorageFull|QuotaExceeded|InsufficientStorage|507 Insufficient Storage"
)
_SYSTEM_ERROR = re.compile(r"os error (\d+)")
_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>([A-Za-z0-9]{1,64})</Code>")
_BUCKET_IS_MISSING = re.compile(r"<Code>NoSuchBucket</Code>")
_REFUSED_STATUS = frozenset({"401", "403"})
# The library's words, in the order in which they are looked for: the first that fits is the reason.
_TRANSPORT = (
    (re.compile(r"metadata token request|instance credentials|/latest/meta-data"), "no credentials"),
    (re.compile(r"dns error|failed to lookup address"), "unknown host"),
    (re.compile(r"Connection refused"), "connection refused"),
    (re.compile(r"certificate|UnknownIssuer|InvalidCertificate"), "its certificate is not trusted"),
    (re.compile(r"TimedOut|timed out|kind: Timeout"), "timed out"),
    (re.compile(r"Connection reset|IncompleteMessage|UnexpectedEof|kind: Interrupted"), "connection lost"),
    (re.compile(r"kind: Connect|error sending request"), "cannot connect"),
)


class StorageUnavailableError(OSError):
    """The store does not do what it was asked. `reason`: why, for operators; names no credential."""

    def __init__(self, message: str = "the storage does not answer", *, reason: str = "") -> None:
        super().__init__(f"{message} ({reason})" if reason else message)
        self.reason = reason


class StorageFullError(StorageUnavailableError):
    """There is no room left."""


class StorageRefusedError(StorageUnavailableError):
    """The store does not accept our credentials, or they may not do this."""


class BucketMissingError(StorageUnavailableError):
    """There is no such bucket."""


class StorageCorruptError(StorageUnavailableError):
    """The stored bytes are not those that were stored."""


def reason_of_local(error: Exception) -> str:
    found = _SYSTEM_ERROR.search(str(error))
    return os.strerror(int(found[1])) if found else ""


def reason_of_s3(error: Exception) -> str:
    """Status, code and kind of failure, and nothing else of what the server or the library said."""
    text = str(error)
    status, code = _STATUS.search(text), _CODE.search(text)
    if status is not None:
        return f"{status[1]} {code[1]}" if code else status[1]
    return next((reason for pattern, reason in _TRANSPORT if pattern.search(text)), "failed")


def storage_error(error: Exception, reason: str) -> StorageUnavailableError:
    """The name of what the library said."""
    text = str(error)
    if _NO_ROOM.search(text):
        return StorageFullError("the storage is full", reason=reason)
    if _BUCKET_IS_MISSING.search(text):
        return BucketMissingError("the bucket does not exist", reason=reason)
    if (
        isinstance(error, (PermissionDeniedError, UnauthenticatedError))
        or reason[:3] in _REFUSED_STATUS
        or reason == "no credentials"
    ):
        return StorageRefusedError("the storage refuses the credentials", reason=reason)
    return StorageUnavailableError(reason=reason)


@contextmanager
def named_errors(reason_of: Callable[[Exception], str], *, key: str | None = None) -> Iterator[None]:
    """Turn the library's errors into ours, without its words and without its cause.

    A missing object stays a FileNotFoundError, where `key` names it; where none is read it cannot be one.
    """
    try:
        yield
    except FileNotFoundError as error:
        if key is not None and not _BUCKET_IS_MISSING.search(str(error)):
            raise FileNotFoundError(f"{key} is not in the storage") from None
        raise storage_error(error, reason_of(error)) from None
    except BaseError as error:
        raise storage_error(error, reason_of(error)) from None
