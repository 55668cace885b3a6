"""Whose turn it is when a job failed: plain data, one kind per `error.code`."""

from __future__ import annotations

from typing import Literal

ErrorKind = Literal["user", "operator", "system"]

KINDS: dict[str, ErrorKind] = {
    # The owner can change the inputs.
    "safety_gate_failed": "user",
    "invalid_training_file": "user",
    "invalid_validation_file": "user",
    "harmful_training_file": "user",
    "invalid_lora": "user",
    "unsupported_defence": "user",
    "packing_unsupported": "user",
    "non_finite_loss": "user",
    "out_of_memory": "user",
    "deadline_exceeded": "user",
    # The operator must put something right first.
    "file_corrupted": "operator",
    "base_mismatch": "operator",
    "invalid_model": "operator",
    "invalid_safety_profile": "operator",
    "kept_adapter_lost": "operator",
    # Nothing was wrong with the job: try again.
    "worker_lost": "system",
    "judge_unavailable": "system",
    "internal_error": "system",
}


def error_kind(code: str) -> ErrorKind:
    """A code that is not listed is this server's own."""
    return KINDS.get(code, "system")
