"""What jobs are in, and what became of them, in plain words."""

from __future__ import annotations

import signal
from collections.abc import Mapping

from service.jobs.attempts import ExitReason
from service.jobs.states import Stage, Status
from service.models import JobAttempt

STATUSES = {
    Status.VALIDATING_FILES: "checking files",
    Status.QUEUED: "queued",
    Status.PAUSED: "paused",
    Status.RUNNING: "running",
    Status.SUCCEEDED: "succeeded",
    Status.FAILED: "failed",
    Status.CANCELLED: "cancelled",
}
STAGES = {
    Stage.PREPARE: "Check the files",
    Stage.TRAIN: "Train",
    Stage.SANITIZE: "Sanitise",
    Stage.EVALUATE: "Measure safety",
    Stage.PUBLISH: "Publish",
}
TURNS = {
    "user": "You can change something about it: the job's files or settings.",
    "operator": "The operator of this server must put something right first.",
    "system": "Nothing was wrong with the job. Run it again.",
}
"""By the kind of an error code: whose turn it is."""
TURNS_FOR_OPERATORS = {
    "user": "Its owner can change something about it: the job's files or settings.",
    "operator": "It is yours to put right: the log of the last attempt says more.",
    "system": "Nothing was wrong with the job. Run it again; the log of the last attempt says more.",
}

_ENDINGS = {
    ExitReason.PUBLISHED: "published the adapter",
    ExitReason.FAILED: "ended the job",
    ExitReason.CANCELLED: "cancelled",
    ExitReason.PAUSED: "paused, its work kept",
    ExitReason.DRAINED: "its worker shut down; does not count as an attempt",
    ExitReason.DEADLINE: "the stage took longer than this server allows",
    ExitReason.OUT_OF_MEMORY: "out of accelerator memory, also with half the tokens at once",
    ExitReason.TOO_LARGE: "too large for its worker; does not count as an attempt",
    ExitReason.STORAGE_DOWN: "the storage did not answer; does not count as an attempt",
    ExitReason.SCRATCH_FULL: "its worker's disk was full; does not count as an attempt",
    ExitReason.LOST_LEASE: "its worker stopped answering and lost the job",
}


def ending(attempt: JobAttempt) -> str:
    """Why the attempt ended; `running` for one that has not."""
    if attempt.exit_reason is None:
        return "running"
    if attempt.exit_reason == ExitReason.DIED:
        return f"its process {_died(attempt.exit_code)}"
    words = _ENDINGS.get(ExitReason(attempt.exit_reason), attempt.exit_reason)
    return f"{words}: {attempt.error_code}" if attempt.exit_reason == ExitReason.FAILED else words


def _died(exit_code: int | None) -> str:
    if exit_code is None:
        return "ended unexpectedly"
    if exit_code >= 0:
        return f"ended unexpectedly with exit code {exit_code}"
    try:
        name = signal.Signals(-exit_code).name
    except ValueError:
        name = f"signal {-exit_code}"
    hint = "; the machine may have run out of memory" if exit_code == -signal.SIGKILL else ""
    return f"was ended by {name}{hint}"


FIELDS = {
    "n_epochs": "Epochs",
    "batch_size": "Conversations per step",
    "learning_rate": "Learning rate",
    "schedule": "Learning rate over time",
    "warmup_ratio": "Share of steps to warm up",
    "weight_decay": "Weight decay",
    "max_grad_norm": "Largest gradient norm",
    "max_seq_length": "Longest conversation, tokens",
    "too_long": "Longer conversations",
    "packing": "Conversations packed into rows",
    "train_on_inputs": "Questions trained too",
    "evaluations_per_epoch": "Evaluations per epoch",
    "early_stopping": "Early stopping",
    "activation_checkpointing": "Layers computed twice to save memory",
    "r": "Rank of the adapter",
    "lora_alpha": "Scale of the adapter (alpha)",
    "lora_dropout": "Dropout of the adapter",
    "target_modules": "Adapted modules",
    "defence": "Defence in training",
}
"""Hyper-parameters, in the order in which they are shown."""


def setting(value: object) -> str:
    """Of a hyper-parameter."""
    if value is None or value is False:
        return "no"
    if value is True:
        return "yes"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    if isinstance(value, dict):
        return ", ".join(f"{name.replace('_', ' ')} {setting(each)}" for name, each in value.items())
    words = {
        "truncate": "cut",
        "refuse": "refused",
        "all-linear": "every linear layer",
        "attention": "the attention's linear layers",
    }
    return words.get(str(value), str(value))


def defence(value: Mapping[str, object]) -> str:
    """Of a job's spec, with its settings."""
    settings = {name: each for name, each in value.items() if name != "name"}
    name = {"sft": "none", "lisa": "Lisa", "ldifs": "LDIFS"}.get(str(value["name"]), str(value["name"]))
    return f"{name} ({setting(settings)})" if settings else name
