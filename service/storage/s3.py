"""A bucket of Amazon S3, or of anything that speaks its protocol, and in it the keys below a prefix.

Objects up to a part's size are one request; larger ones are uploaded in parts, which nobody sees before the
last of them is there. An upload that fails is aborted; what a killed process left is swept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import timedelta
from io import BufferedReader
from itertools import chain

import obstore
from obstore.store import S3Store

from service.storage import s3_admin
from service.storage.errors import reason_of_s3
from service.storage.interface import Storage
from service.storage.s3_url import ENVIRONMENT, S3Place

PART_BYTES = 8 * 1024 * 1024
"""S3 takes at most 10,000 parts: objects of 80 GB."""
PARTS_AT_ONCE = 2
"""Memory of one upload: so many parts, one that is being filled, and one on its way between them."""
_PROBE_SECONDS = 3.0
_DELETED_AT_ONCE = 1000


class S3Storage(Storage):
    """Credentials come from the environment; a short-lived one is renewed by the library."""

    child_environment = ENVIRONMENT

    def __init__(self, place: S3Place) -> None:
        super().__init__(_store(place), reason_of_s3)
        self.place = place
        timeout_seconds = min(_PROBE_SECONDS, place.timeout_seconds)
        # Whoever asks whether it answers wants to know now.
        self._probe_store = _store(place, timeout_seconds=timeout_seconds, retry_seconds=timeout_seconds)

    def _put(self, key: str, content: bytes | BufferedReader | Iterator[bytes]) -> None:
        if isinstance(content, bytes):
            small = len(content) <= PART_BYTES
        elif isinstance(content, BufferedReader):
            start = content.read(PART_BYTES + 1)
            content.seek(0)
            small = len(start) <= PART_BYTES
            content = start if small else content
        else:
            small, content = _whole_or_iterator(content)
        obstore.put(
            self._store,
            key,
            content,
            use_multipart=not small,
            chunk_size=PART_BYTES,
            max_concurrency=PARTS_AT_ONCE,
        )

    def delete_all(self, keys: Sequence[str]) -> None:
        """By the thousand."""
        for start in range(0, len(keys), _DELETED_AT_ONCE):
            with self._named_errors():
                obstore.delete(self._store, keys[start : start + _DELETED_AT_ONCE])

    def delete_unfinished(self, *, before: float) -> int:
        return s3_admin.abort_uploads(self.place, before=before)


def _whole_or_iterator(chunks: Iterator[bytes]) -> tuple[bool, bytes | Iterator[bytes]]:
    """Everything, if it fits into one part; then it needs one request, not three, and the iterator ran in
    this thread."""
    start = bytearray()
    for chunk in chunks:
        start += chunk
        if len(start) > PART_BYTES:
            return False, chain((bytes(start),), chunks)
    return True, bytes(start)


def _store(
    place: S3Place, *, timeout_seconds: float | None = None, retry_seconds: float | None = None
) -> S3Store:
    timeout = timedelta(seconds=timeout_seconds or place.timeout_seconds)
    client: dict[str, object] = {
        "allow_http": place.endpoint is not None and place.endpoint.startswith("http://"),
        "connect_timeout": min(timeout, timedelta(seconds=5)),
        # Of silence. The limit of a whole request would cut off slow readers of large objects.
        "read_timeout": timeout,
        "timeout": timedelta(days=1),
    }
    if place.ca_file is not None:
        client["root_certificate"] = place.ca_file.read_bytes()
    endpoint = {} if place.endpoint is None else {"endpoint": place.endpoint}
    return S3Store(
        place.bucket,
        prefix=place.prefix or None,
        region=place.region,
        virtual_hosted_style_request=not place.path_style,
        client_options=client,  # type: ignore[arg-type]  # a TypedDict; the certificate is not always there
        retry_config={
            "max_retries": 8,
            "retry_timeout": timedelta(seconds=retry_seconds or place.retry_seconds),
            "backoff": {
                "init_backoff": timedelta(milliseconds=100),
                "max_backoff": timedelta(seconds=5),
                "base": 2,
            },
        },
        **endpoint,  # type: ignore[arg-type]
    )
