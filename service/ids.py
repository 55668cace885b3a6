"""Identifiers as OpenAI's clients know them: a prefix and 128 random bits or more."""

from __future__ import annotations

import secrets
import string

_ALPHABET = string.ascii_letters + string.digits
_LENGTH = 24  # 62**24 is about 2**142

BASE_REGISTRATION = "basereg_"
"""With it an id tells a doorbell for a base from one for a job."""


def _random() -> str:
    # One draw for all characters: every request takes an id.
    rest = secrets.randbelow(len(_ALPHABET) ** _LENGTH)
    characters = []
    for _ in range(_LENGTH):
        rest, index = divmod(rest, len(_ALPHABET))
        characters.append(_ALPHABET[index])
    return "".join(characters)


def organization_id() -> str:
    return f"org-{_random()}"


def project_id() -> str:
    return f"proj_{_random()}"


def api_key_id() -> str:
    return f"key_{_random()}"


def admin_key_id() -> str:
    return f"adminkey_{_random()}"


def operator_key_id() -> str:
    return f"opkey_{_random()}"


def permission_id() -> str:
    return f"cp_{_random()}"


def file_id() -> str:
    return f"file-{_random()}"


def upload_id() -> str:
    return f"upload_{_random()}"


def part_id() -> str:
    return f"part_{_random()}"


def job_id() -> str:
    return f"ftjob-{_random()}"


def event_id() -> str:
    return f"ftevent-{_random()}"


def checkpoint_id() -> str:
    return f"ftckpt_{_random()}"


def base_registration_id() -> str:
    return f"{BASE_REGISTRATION}{_random()}"


def audit_entry_id() -> str:
    return f"audit_{_random()}"


def webhook_id() -> str:
    return f"webhook_{_random()}"


def webhook_event_id() -> str:
    return f"evt_{_random()}"


def delivery_id() -> str:
    return f"delivery_{_random()}"


def request_id() -> str:
    return f"req_{_random()}"


def fine_tuned_model_id(base: str, organization: str, suffix: str | None) -> str:
    """`ft:<base>:<organization>:<suffix>:<random>`, the form of OpenAI's own names."""
    return f"ft:{base}:{organization}:{suffix or ''}:{_random()[:8]}"
