"""The file of `autoclave finetune --fuse`: a JSON list, one object per job.

    [{"data": "a.jsonl", "out": "adapters/a", "lora": {"r": 8}, "train": {"n_epochs": 2, "seed": 1}}, ...]

Everything is checked before a base is loaded, and every message names the entry. Torch-free.
"""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import ValidationError

from autoclave.data.conversations import check_file
from autoclave.errors import DataError, InputError
from autoclave.spec import LoraSpec, Spec, TrainSpec


class FuseEntry(Spec):
    """One job. Paths are as on the command line; `lora` and `train` as in `training.json`, what is left out
    has its default. `base_name` goes into the adapter."""

    data: Path
    out: Path
    validation: Path | None = None
    base_name: str | None = None
    lora: LoraSpec = LoraSpec()
    train: TrainSpec = TrainSpec()


def read_fuse_file(file: Path) -> list[FuseEntry]:
    """Raises InputError for a file that is no such list, DataError for bad data of an entry; both name it."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{file} cannot be read as JSON: {error}") from error
    if not isinstance(values, list) or not values:
        raise InputError(f'{file} must be a list of jobs, each {{"data": ..., "out": ...}}.')
    entries = [_entry(value, where(file, index)) for index, value in enumerate(values)]
    taken: dict[Path, int] = {}
    for index, entry in enumerate(entries):
        first = taken.setdefault(entry.out.resolve(), index)
        if first != index:
            raise InputError(f"{where(file, index)}: {entry.out} is the output of entry {first + 1} already.")
    for index, entry in enumerate(entries):
        _refuse_unusable(entry, where(file, index))
    return entries


def where(file: Path, index: int) -> str:
    """How messages name an entry; counted from 1."""
    return f"{file}, entry {index + 1}"


def _entry(value: object, name: str) -> FuseEntry:
    try:
        entry = FuseEntry.model_validate(value)
    except ValidationError as error:
        issue = error.errors()[0]
        field = ".".join(map(str, issue["loc"])) or "the entry"
        raise InputError(f"{name}: {field}: {issue['msg']} (got {issue['input']!r})") from error
    if "micro_batch_tokens" in entry.train.model_fields_set:
        raise InputError(
            f"{name}: train.micro_batch_tokens bounds a pass of all jobs; give --micro-batch-tokens to the "
            "command."
        )
    if "activation_checkpointing" in entry.train.model_fields_set:
        raise InputError(
            f"{name}: train.activation_checkpointing is of the passes of all jobs; give "
            "--activation-checkpointing to the command."
        )
    if entry.lora.lora_dropout:
        raise InputError(
            f"{name}: lora.lora_dropout must be 0: dropout would draw for all jobs together. Train this job "
            "alone."
        )
    if entry.train.early_stopping is not None and entry.validation is None:
        raise InputError(f"{name}: train.early_stopping needs validation: its loss decides when to stop.")
    return entry


def _refuse_unusable(entry: FuseEntry, name: str) -> None:
    if entry.out.exists() and (not entry.out.is_dir() or any(entry.out.iterdir())):
        raise InputError(f"{name}: {entry.out} exists already and is not an empty folder.")
    try:
        check_file(entry.data)
        if entry.validation is not None:
            check_file(entry.validation, min_examples=1)
    except DataError as error:
        raise DataError(error.issues, error.num_issues, f"{name}: {error.source or entry.data}") from error
    except OSError as error:
        raise InputError(f"{name}: {error}") from error
