"""What a file must be, by its purpose: checked while its bytes pass, in constant memory.

Used for a file in one piece and for one that is put together from parts. OpenAI has more purposes; the
ones that this server does nothing with are refused by name, so that nobody waits for what never comes.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from autoclave.data.conversations import ConversationChecker
from autoclave.errors import DataError
from service.errors import ApiError, invalid
from service.files.schemas import PURPOSE

USER_DATA = "user_data"
_REFUSED = {
    "assistants": "this server runs no assistants",
    "batch": "this server runs no batches",
    "vision": "this server trains on text only",
    # OpenAI's own file object has no such purpose: a client in strict mode could not read the answer.
    "evals": "this server runs no evals; a job measures with its validation file",
}


@dataclass(frozen=True)
class ContentLimits:
    max_line_bytes: int
    min_examples: int


@dataclass(frozen=True)
class Content:
    bytes: int
    sha256: str
    num_examples: int | None


def check_purpose(purpose: str) -> None:
    """Raises ApiError 400."""
    if purpose in (PURPOSE, USER_DATA):
        return
    if purpose in _REFUSED:
        raise invalid(
            f"Purpose {purpose!r} is not supported: {_REFUSED[purpose]}. Send purpose='{PURPOSE}', or "
            f"'{USER_DATA}' to only store the file.",
            param="purpose",
            code="unsupported_purpose",
        )
    raise invalid(f"Unknown purpose {purpose!r}: send '{PURPOSE}' or '{USER_DATA}'.", param="purpose")


class ContentCheck:
    """`feed` it the file's bytes, then `finish` once. `purpose` is None while it is not known yet."""

    def __init__(self, purpose: str | None, limits: ContentLimits) -> None:
        self._num_bytes = 0
        self._digest = None if purpose == PURPOSE else hashlib.sha256()
        self._dataset = (
            None
            if purpose == USER_DATA
            else ConversationChecker(min_examples=limits.min_examples, max_line_bytes=limits.max_line_bytes)
        )

    def feed(self, data: bytes) -> None:
        self._num_bytes += len(data)
        if self._digest is not None:
            self._digest.update(data)
        if self._dataset is not None:
            self._dataset.feed(data)

    def finish(self, purpose: str, *, param: str) -> Content:
        """Raises ApiError 400 with every line that breaks a rule; `param` is what the client must change."""
        if purpose == USER_DATA:
            assert self._digest is not None, "the check was begun for a dataset"
            return Content(bytes=self._num_bytes, sha256=self._digest.hexdigest(), num_examples=None)
        assert self._dataset is not None, f"the check was not begun for a dataset, now it is {purpose}"
        try:
            summary = self._dataset.finish()
        except DataError as error:
            raise _bad_dataset(error, param) from error
        return Content(bytes=summary.bytes, sha256=summary.sha256, num_examples=summary.num_examples)


def _bad_dataset(error: DataError, param: str) -> ApiError:
    return ApiError(
        400,
        f"Invalid training file: {error}",
        param=param,
        code=error.code,
        extra={
            "issues": [issue.as_dict() for issue in error.issues],
            "num_issues": error.num_issues,
        },
    )
