"""Statuses, stages and error codes in words, for the operator's pages."""

from __future__ import annotations

from typing import Any

from service.jobs.states import Stage, Status

STATUSES = {
    Status.VALIDATING_FILES.value: "checking files",
    Status.QUEUED.value: "queued",
    Status.PAUSED.value: "paused",
    Status.RUNNING.value: "running",
    Status.SUCCEEDED.value: "succeeded",
    Status.FAILED.value: "failed",
    Status.CANCELLED.value: "cancelled",
}
STAGES = {
    Stage.PREPARE.value: "prepare",
    Stage.TRAIN.value: "train",
    Stage.SANITIZE.value: "sanitise",
    Stage.EVALUATE.value: "evaluate",
    Stage.PUBLISH.value: "publish",
}
WHOSE_TURN = {"user": "the user's", "operator": "the operator's", "system": "this system's"}
WORDS: dict[str, Any] = {"statuses": STATUSES, "stages": STAGES}
"""What templates find as `statuses` and `stages`."""
