"""The form that sets a project's own quotas."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from service.errors import invalid

_LARGEST = {"storage_bytes": 2**63 - 1, "gpu_seconds": 2**63 - 1}
_LARGEST_COUNT = 2**31 - 1
_NUMBER = re.compile(r"(\d+(?:\.\d+)?)\s*(B|kB|MB|GB|TB|KiB|MiB|GiB|TiB|s|min|h|d)?", re.IGNORECASE)
_BYTES = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12} | {
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
}
_SECONDS = {"s": 1, "min": 60, "h": 3600, "d": 86400}


@dataclass(frozen=True)
class QuotaField:
    title: str
    hint: str
    units: Mapping[str, int]
    """What may stand behind the number, in lower case, and what it multiplies."""


QUOTA_FIELDS = {
    "storage_bytes": QuotaField("Storage", "bytes, or with a unit: 500 GB, 1.5 TiB", _BYTES),
    "concurrent_jobs": QuotaField("Running jobs", "at once", {}),
    "queued_jobs": QuotaField("Waiting jobs", "paused ones included", {}),
    "jobs_per_day": QuotaField("New jobs", "in any 24 hours", {}),
    "gpu_seconds": QuotaField("GPU time", "a month (UTC); seconds, or with a unit: 90 min, 200 h", _SECONDS),
    "requests_per_minute": QuotaField("Requests per minute", "reads, writes and uploads, each", {}),
}


def read_quotas(given: Mapping[str, str]) -> dict[str, int]:
    """Those that are filled in. Raises ApiError 400."""
    numbers = {}
    for name, text in given.items():
        if text.strip():
            numbers[name] = _number(name, text.strip())
    return numbers


def _number(name: str, text: str) -> int:
    field = QUOTA_FIELDS[name]
    found = _NUMBER.fullmatch(text.replace(",", "").replace("_", ""))
    unit = None if found is None else (found[2] or "").lower()
    if found is None or (unit and unit not in field.units) or (not unit and "." in found[1]):
        raise invalid(f"{field.title}: {text!r} is no whole number ({field.hint}).", param=name)
    value = round(float(found[1]) * field.units[unit]) if unit else int(found[1])
    if value > _LARGEST.get(name, _LARGEST_COUNT):
        raise invalid(f"{field.title}: {text} is too much. 0 is unlimited.", param=name)
    return value
