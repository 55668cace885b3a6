"""A request body that is too large to hold: it flows into a thread, piece by piece, while it comes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TypeVar

from anyio import from_thread, to_thread
from fastapi import Request

from service.errors import ApiError

T = TypeVar("T")

# What a multipart body adds around the file: boundaries, headers and the other fields.
FORM_OVERHEAD_BYTES = 128 * 1024


def refuse_unreadable(request: Request, *, max_bytes: int, too_large: Callable[[int], ApiError]) -> None:
    """Before the body is read. Raises ApiError 415 for a compressed one, and what `too_large` makes of
    `max_bytes` for one that is announced to be larger."""
    if request.headers.get("content-encoding", "identity") != "identity":
        raise ApiError(415, "Send the file without Content-Encoding.", code="unsupported_content_encoding")
    announced = request.headers.get("content-length", "0")
    if announced.isdecimal() and int(announced) > max_bytes + FORM_OVERHEAD_BYTES:
        raise too_large(max_bytes)


async def receive(request: Request, consume: Callable[[Iterable[bytes]], T]) -> T:
    """What `consume` returns for the body. It runs in one of the threads for uploads."""
    stream = request.stream()

    async def next_chunk() -> bytes | None:
        return await anext(stream, None)

    def body() -> Iterator[bytes]:
        while (chunk := from_thread.run(next_chunk)) is not None:
            yield chunk

    return await in_upload_thread(request, partial(consume, body()))


async def in_upload_thread(request: Request, work: Callable[[], T]) -> T:
    """For what takes as long as an upload: it must not take the threads of other requests."""
    return await to_thread.run_sync(work, limiter=request.state.upload_threads)
