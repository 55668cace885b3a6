"""Making an aligned base from folders into a folder: what `autoclave align` does."""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from autoclave.data.conversations import check_file
from autoclave.data.token_cache import TokenCache
from autoclave.defences.methods import align_objective, refuse_wrong_harmful_data
from autoclave.errors import InputError
from autoclave.hashing import file_sha256, folder_sha256
from autoclave.modelling.adapters import WEIGHTS_FILE, attach, save_adapter
from autoclave.modelling.bases import default_dtype, load_base, resolve_device
from autoclave.modelling.continued import alignment_provenance
from autoclave.modelling.finite_weights import refuse_non_finite
from autoclave.outputs import output_folder
from autoclave.progress import Progress, ProgressCallback
from autoclave.spec import AlignMethod, LoraSpec, TrainSpec
from autoclave.training.checkpoint import CheckpointStore
from autoclave.training.finetune import encode_for, estimated_bytes, training_record, versions
from autoclave.training.loop import finetune

RECORD_FILE = "alignment.json"


def align_folder(
    base_dir: str | Path,
    data_file: str | Path,
    out_dir: str | Path,
    *,
    method: AlignMethod,
    lora: LoraSpec,
    train: TrainSpec,
    harmful_file: str | Path | None = None,
    device: str | None = None,
    checkpoint_dir: str | Path | None = None,
    checkpoint_every_steps: int = 100,
    token_cache: str | Path | None = None,
    adapter_out: str | Path | None = None,
    on_progress: ProgressCallback | None = None,
) -> dict[str, Any]:
    """Trains a LoRA on safe chat JSONL with this method, merges it into the base, and writes that as a base
    of its own (safetensors, tokenizer) with `alignment.json`, which is also returned.

    repnoise and booster need `harmful_file`; for repnoise its line i answers the same prompt as line i of the
    data. The weights are stored in the type that they were trained in: float32 on a CPU, bfloat16 on CUDA.
    `sha256.aligned` of the record is the hash under which the folder is registered. A run that was stopped
    goes on from `checkpoint_dir`. `adapter_out` gets the LoRA itself, unmerged, for the base that was
    aligned: fine-tuning can be continued from it (`modelling.continued`). `token_cache` is a private folder
    in which tokens are kept for the next run on the same data. Raises InputError and its subclasses for bad
    data or folders, NonFiniteLossError.
    """

    def report(progress: Progress) -> None:
        if on_progress is not None:
            on_progress(replace(progress, stage="align"))

    refuse_wrong_harmful_data(method, harmful_file)
    device = resolve_device(device)
    dataset = check_file(data_file)
    harmful = None if harmful_file is None else check_file(harmful_file)
    store = CheckpointStore(checkpoint_dir) if checkpoint_dir else None
    cache = TokenCache(token_cache) if token_cache else None
    with ExitStack() as stack:
        out = stack.enter_context(output_folder(out_dir))
        kept = None if adapter_out is None else stack.enter_context(output_folder(adapter_out))
        base = load_base(base_dir, dtype=default_dtype(device), device=device)
        encoded = encode_for(train, base.tokenizer, data_file, cache)
        attack = None if harmful_file is None else encode_for(train, base.tokenizer, harmful_file, cache)
        if method.name == "repnoise" and (encoded.num_dropped or (attack and attack.num_dropped)):
            raise InputError(
                "repnoise compares line by line, but some lines have nothing to train on after the cut at "
                f"max_seq_length {train.max_seq_length}. Raise it, or remove those lines from both files."
            )
        objective = align_objective(method, encoded.examples, attack.examples if attack else ())
        model = attach(base.model, lora, seed=train.seed)
        result = finetune(
            model,
            encoded.examples,
            train,
            device=device,
            objective=objective,
            on_progress=report,
            checkpoint=store,
            checkpoint_every_steps=checkpoint_every_steps,
        )
        checkpointing = result.activation_checkpointing
        memory = estimated_bytes(
            model, train, method, encoded, attack, device=device, checkpointing=checkpointing
        )
        if kept is not None:
            save_adapter(
                model,
                kept,
                base_name=str(base_dir),
                base_revision=None,
                base_sha256=base.sha256,
                provenance=alignment_provenance(method.name),
            )
        merged = model.merge_and_unload()
        refuse_non_finite(dict(merged.named_parameters()), Path(out_dir))
        merged.save_pretrained(out)
        base.tokenizer.save_pretrained(out)
        record = {
            **training_record(method, lora, train, encoded, result, memory=memory),
            "device": device,
            "dtype": str(merged.dtype).removeprefix("torch."),
            "sha256": {
                "base": base.sha256,
                "data": dataset.sha256,
                **({} if harmful is None else {"harmful": harmful.sha256}),
                **({} if kept is None else {"adapter": file_sha256(kept / WEIGHTS_FILE)}),
                "aligned": folder_sha256(out),
            },
            "versions": versions(),
        }
        whole = record | {"losses": result.losses}
        (out / RECORD_FILE).write_text(json.dumps(whole, indent=2) + "\n", encoding="utf-8")
    if store:
        store.clear()
    return record
