"""What a worker process says of itself."""

from __future__ import annotations

from enum import StrEnum


class WorkerState(StrEnum):
    IDLE = "idle"
    BUSY = "busy"
    STOPPING = "stopping"
    """It was told to stop and hands its job back."""
    GONE = "gone"
    """It stopped by itself. One that was killed stays what it was, and its heartbeat grows old."""
