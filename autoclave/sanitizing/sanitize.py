"""Sanitising an adapter folder into another one, with the record of what was done."""

from __future__ import annotations

import json
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from autoclave import __version__
from autoclave.data.conversations import check_file, read_conversations
from autoclave.data.tokens import encode
from autoclave.errors import InputError
from autoclave.hashing import file_sha256
from autoclave.modelling.adapters import (
    WEIGHTS_FILE,
    load_adapter,
    read_base_name,
    save_adapter,
)
from autoclave.modelling.bases import default_dtype, load_base, resolve_device
from autoclave.outputs import output_folder
from autoclave.progress import ProgressCallback
from autoclave.sanitizing.antidote import Antidote, MatrixCount
from autoclave.sanitizing.masks import RULE

RECORD_FILE = "sanitization.json"


def sanitize_folder(
    base_dir: str | Path,
    adapter_dir: str | Path,
    realign_file: str | Path,
    alpha: float,
    out_dir: str | Path,
    *,
    method: str = "antidote",
    max_seq_length: int = 2048,
    batch_tokens: int = 8192,
    device: str | None = None,
    on_progress: ProgressCallback | None = None,
) -> dict[str, Any]:
    """Writes a PEFT adapter of unchanged rank and `sanitization.json` to `out_dir`; returns that record.

    `realign_file` is chat JSONL of harmful prompts with their harmful answers; all their tokens count
    (longer examples are cut at `max_seq_length`). `device` is CUDA where there is one unless given; the
    base is float32 on CPU and bfloat16 on CUDA (near-ties can then fall otherwise). Raises InputError
    and its subclasses for what cannot be sanitised.
    """
    if method != "antidote":
        raise InputError(f'unknown method "{method}"; this version knows: antidote.')
    if not 0.0 < alpha < 1.0:
        raise InputError(f"alpha is the pruned fraction and must be above 0 and below 1, got {alpha}.")
    device = resolve_device(device)
    realign = check_file(realign_file, min_examples=1)
    with output_folder(out_dir) as out:
        base = load_base(base_dir, dtype=default_dtype(device), device=device)
        model = load_adapter(base, adapter_dir)
        encoded = encode(
            base.tokenizer,
            read_conversations(realign_file),
            max_seq_length=max_seq_length,
            keep_untrained=True,
        )
        antidote = Antidote.from_pass(
            model, encoded.examples, device=device, batch_tokens=batch_tokens, on_progress=on_progress
        )
        counts = antidote.apply(alpha)
        name, revision = read_base_name(adapter_dir)
        save_adapter(model, out, base_name=name, base_revision=revision, base_sha256=base.sha256)
        record = sanitization_record(alpha, counts, antidote) | {
            "device": device,
            "dtype": str(base.model.dtype).removeprefix("torch."),
            "realign_truncated": encoded.num_truncated,
            "sha256": {
                "base": base.sha256,
                "adapter_in": file_sha256(Path(adapter_dir) / WEIGHTS_FILE),
                "adapter_out": file_sha256(out / WEIGHTS_FILE),
                "realign_data": realign.sha256,
            },
        }
        (out / RECORD_FILE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return record


def sanitization_record(alpha: float, counts: dict[str, MatrixCount], antidote: Antidote) -> dict[str, Any]:
    """The part of `sanitization.json` that follows from the masks alone. `pruned_fraction` is of all
    entries of all factors; it exceeds alpha, because k rounds up in every row."""
    norm = next(iter(antidote.norms.values()))
    entries = sum(count.rows * count.cols for count in counts.values())
    pruned = sum(count.pruned for count in counts.values())
    return {
        "method": "antidote",
        "alpha": alpha,
        "rule": RULE,
        "realign_examples": norm.num_samples,
        "realign_tokens": norm.num_tokens,
        "pruned": pruned,
        "entries": entries,
        "pruned_fraction": pruned / entries,
        "matrices": {name: asdict(count) for name, count in counts.items()},
        "versions": {"autoclave": __version__} | {n: version(n) for n in ("torch", "transformers", "peft")},
    }
