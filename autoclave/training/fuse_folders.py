"""Fused fine-tuning from folders into folders: what `autoclave finetune --fuse` does."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from autoclave.data.token_cache import TokenCache
from autoclave.data.tokens import Encoded
from autoclave.errors import InputError
from autoclave.hashing import file_sha256
from autoclave.modelling.adapters import WEIGHTS_FILE, write_adapter
from autoclave.modelling.bases import LoadedBase, default_dtype, load_base, resolve_device
from autoclave.outputs import output_folder
from autoclave.progress import Progress, ProgressCallback
from autoclave.spec import ActivationCheckpointing, SftSpec
from autoclave.training.finetune import (
    encode_for,
    peak_resident_bytes,
    training_record,
    validation_record,
    versions,
    write_record,
)
from autoclave.training.fuse_file import FuseEntry, where
from autoclave.training.fused import finetune_fused
from autoclave.training.fused_job import FusedJob, Outcome


def finetune_fused_folders(
    base_dir: str | Path,
    entries: Sequence[FuseEntry],
    fuse_file: Path,
    *,
    width: int = 8,
    row_tokens: int = 8192,
    device: str | None = None,
    activation_checkpointing: ActivationCheckpointing = "auto",
    token_cache: str | Path | None = None,
    on_progress: ProgressCallback | None = None,
) -> dict[str, Any]:
    """Trains the jobs of `fuse_file` (`fuse_file.read_fuse_file`) together and writes each adapter, which is
    not sanitised, into its folder when that job ends. Returns what happened to each: its record, or its
    `error`; a job that failed has no folder. `token_cache` is as in `finetune_folder`. `on_progress` gets the
    steps of all jobs together.

    Raises InputError and ModelError, naming the entry, before anything is trained.
    """
    began = time.perf_counter()
    device = resolve_device(device)
    cache = TokenCache(token_cache) if token_cache else None
    base = load_base(base_dir, dtype=default_dtype(device), device=device)
    report = _Together(on_progress)
    encoded: list[Encoded] = []
    jobs: list[FusedJob] = []
    for index, entry in enumerate(entries):
        name = where(fuse_file, index)
        try:
            encoded.append(encode_for(entry.train, base.tokenizer, entry.data, cache))
            held_out = None
            if entry.validation is not None:
                held_out = encode_for(entry.train, base.tokenizer, entry.validation, cache)
        except InputError as error:
            raise InputError(f"{name}: {error}") from error
        if held_out is not None and not held_out.examples:
            raise InputError(f"{name}: no validation example has a trained token.")
        validation = held_out.examples if held_out else ()
        callback = partial(report, index)
        jobs.append(FusedJob(name, encoded[-1].examples, entry.lora, entry.train, validation, callback))
    records: list[dict[str, Any]] = [{} for _ in entries]

    def on_end(index: int, outcome: Outcome) -> None:
        entry = entries[index]
        records[index] = {"data": str(entry.data), "out": str(entry.out)}
        if outcome.error is not None:
            records[index] |= {"error": {"code": outcome.error.code, "message": str(outcome.error)}}
            return
        records[index] |= _write(base, entry, encoded[index], outcome, num_jobs=len(entries), device=device)

    finetune_fused(
        base.model,
        jobs,
        device=device,
        width=width,
        row_tokens=row_tokens,
        on_end=on_end,
        activation_checkpointing=activation_checkpointing,
    )
    return {
        "jobs": records,
        "seconds": round(time.perf_counter() - began, 3),
        "peak_memory_bytes": peak_resident_bytes(),
        "device": device,
    }


def _write(
    base: LoadedBase,
    entry: FuseEntry,
    encoded: Encoded,
    outcome: Outcome,
    *,
    num_jobs: int,
    device: str,
) -> dict[str, Any]:
    name = str(base.dir) if entry.base_name is None else entry.base_name
    with output_folder(entry.out) as out:
        write_adapter(
            outcome.state, outcome.config, out, base_name=name, base_revision=None, base_sha256=base.sha256
        )
        record = {
            **training_record(SftSpec(), entry.lora, entry.train, encoded, outcome.result),
            "fused_with": num_jobs - 1,
            "trained_tokens": outcome.result.trained_tokens,
            **({} if entry.validation is None else validation_record(outcome.result)),
            "device": device,
            "dtype": str(base.model.dtype).removeprefix("torch."),
            "sha256": {
                "base": base.sha256,
                "data": file_sha256(entry.data),
                **({} if entry.validation is None else {"validation": file_sha256(entry.validation)}),
                "adapter": file_sha256(out / WEIGHTS_FILE),
            },
            "versions": versions(),
        }
        write_record(out, record, outcome.result)
    return record


class _Together:
    """Steps of all jobs as one progress."""

    def __init__(self, on_progress: ProgressCallback | None) -> None:
        self._on_progress = on_progress
        self._latest: dict[int, Progress] = {}

    def __call__(self, index: int, progress: Progress) -> None:
        self._latest[index] = progress
        if self._on_progress is None:
            return
        done = sum(latest.step for latest in self._latest.values())
        total = sum(latest.total_steps for latest in self._latest.values())
        self._on_progress(replace(progress, step=done, total_steps=total, seconds_remaining=None))
