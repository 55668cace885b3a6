"""What a base may be called."""

from __future__ import annotations

import re

from autoclave.errors import InputError

_NAME = re.compile(r"[A-Za-z0-9][\w.\-/]{0,254}")
BELOW_A_MODEL = ("/adapter", "/expiry")
"""Ends of the paths of /v1/models that lie below a model; no id ends like them."""
BELOW_A_BASE = ("/retire", "/restore")


def refuse_bad_name(name: str) -> None:
    """Clients send it as `model` and in paths. Raises InputError."""
    if not _NAME.fullmatch(name) or "//" in name or name.endswith("/"):
        raise InputError(
            f"{name!r} cannot be the name of a base: letters, digits, dots, dashes, underscores and single "
            "slashes between them, 255 characters at most, such as acme/llama-aligned."
        )
    refuse_reserved_name(name)


def refuse_reserved_name(name: str) -> None:
    """Raises InputError for a name that another route of the API would answer to."""
    for end in (*BELOW_A_MODEL, *BELOW_A_BASE):
        if name.endswith(end):
            raise InputError(f"{name!r} cannot be the id of a base: no id ends in {end}, a route does")
