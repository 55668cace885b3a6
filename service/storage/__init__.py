"""Bytes under keys, in a folder or in a bucket; which one is the operator's choice (`STORAGE_URL`).

Decision 0020 says what both promise. What a key means lives above.
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

from service.storage.errors import (
    BucketMissingError,
    StorageCorruptError,
    StorageFullError,
    StorageRefusedError,
    StorageUnavailableError,
)
from service.storage.interface import CHUNK_BYTES, Storage
from service.storage.keys import adapter_key, file_key, part_key, part_prefix, private_prefix
from service.storage.local import LocalStorage
from service.storage.s3 import S3Storage
from service.storage.s3_url import s3_place

__all__ = [
    "CHUNK_BYTES",
    "BucketMissingError",
    "LocalStorage",
    "S3Storage",
    "Storage",
    "StorageCorruptError",
    "StorageFullError",
    "StorageRefusedError",
    "StorageUnavailableError",
    "adapter_key",
    "file_key",
    "part_key",
    "part_prefix",
    "private_prefix",
    "storage_from_url",
]


def storage_from_url(url: str) -> Storage:
    """Raises ValueError for a URL that names no supported storage. A bucket is not asked for anything yet."""
    parts = urlsplit(url)
    if parts.scheme == "s3":
        return S3Storage(s3_place(url))
    if parts.scheme != "file" or parts.netloc or not parts.path.startswith("/"):
        shown = repr(url) if "@" not in url else f"{parts.scheme}://..."
        raise ValueError(
            f"STORAGE_URL: {shown} is not supported; use file:///absolute/folder or s3://bucket/prefix"
        )
    return LocalStorage(Path(unquote(parts.path)))
