"""Where a registration of a base stands."""

from __future__ import annotations

from enum import StrEnum


class RegistrationStatus(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


LIVE = (RegistrationStatus.QUEUED.value, RegistrationStatus.RUNNING.value)
