"""What the key behind a session may do: the same table as for the API (`service.scopes`)."""

from __future__ import annotations

from service.deps import Caller
from service.errors import forbidden
from service.scopes import needed


def may(caller: Caller, method: str, route: str) -> bool:
    """`route` is the API's route that does the same, such as `/files/{file_id}`."""
    return needed(method, route) in caller.scopes


def require(caller: Caller, method: str, route: str) -> None:
    """Raises ApiError 403."""
    if not may(caller, method, route):
        raise forbidden(
            f"The key you signed in with lacks the scope {needed(method, route).value!r}, which this needs.",
            code="insufficient_scope",
        )
