"""What can go wrong for whoever runs `autoclave jobs`, and with which status the command then ends.

    JobsError
    ├── RefusedError         3: the request cannot be answered as it is, asking again does not help
    └── UnreachableError     4: no answer, or one that asks to try again later
        └── DamagedError     4: what came is not what the server announced

0, 1 and 2 tell how a watched job ended, so no error uses them.
"""

from __future__ import annotations

from typing import ClassVar


class JobsError(Exception):
    exit_status: ClassVar[int]


class RefusedError(JobsError):
    """`http_status` is None where nothing was sent; `code` is the API's, if it gave one."""

    exit_status = 3

    def __init__(self, message: str, *, http_status: int | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.http_status = http_status
        self.code = code


class UnreachableError(JobsError):
    """`retry_after_seconds` is what the server asked for, if it did."""

    exit_status = 4

    def __init__(self, message: str, *, retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class DamagedError(UnreachableError):
    pass
