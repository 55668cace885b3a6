"""Fine-tuning from folders into a folder: what `autoclave finetune` does."""

from __future__ import annotations

import json
import resource
from contextlib import ExitStack, nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch

from autoclave import __version__
from autoclave.data.conversations import check_file, read_conversations
from autoclave.data.token_cache import TokenCache
from autoclave.data.tokens import Encoded, encode
from autoclave.defences.methods import finetune_objective, refuse_wrong_alignment_data
from autoclave.hashing import file_sha256
from autoclave.modelling.adapters import WEIGHTS_FILE, attach, load_adapter, save_adapter
from autoclave.modelling.bases import default_dtype, load_base, resolve_device
from autoclave.modelling.compiled_blocks import refuse_compiling_on
from autoclave.modelling.continued import ContinuedFrom, alignment_adapter
from autoclave.modelling.liger_kernels import PACKAGE as LIGER_PACKAGE
from autoclave.modelling.liger_kernels import liger_kernels, refuse_liger_on
from autoclave.modelling.nf4 import PACKAGE as NF4_PACKAGE
from autoclave.modelling.nf4 import load_base_in_nf4, refuse_nf4
from autoclave.outputs import output_folder
from autoclave.progress import ProgressCallback
from autoclave.spec import FinetuneMethod, LoraSpec, SftSpec, Spec, TrainingMethod, TrainSpec
from autoclave.training.checkpoint import CheckpointStore
from autoclave.training.loop import finetune
from autoclave.training.model_memory import estimate_of_model
from autoclave.training.ranks import joined_ranks
from autoclave.training.result import TrainResult

RECORD_FILE = "training.json"
_SFT = SftSpec()


def finetune_folder(
    base_dir: str | Path,
    data_file: str | Path,
    out_dir: str | Path,
    lora: LoraSpec,
    train: TrainSpec,
    *,
    method: FinetuneMethod = _SFT,
    alignment_file: str | Path | None = None,
    validation_file: str | Path | None = None,
    base_name: str | None = None,
    device: str | None = None,
    checkpoint_dir: str | Path | None = None,
    checkpoint_every_steps: int = 100,
    token_cache: str | Path | None = None,
    compile_blocks: bool = False,
    continue_from: str | Path | None = None,
    quantise: Literal["nf4"] | None = None,
    liger: bool = False,
    on_progress: ProgressCallback | None = None,
) -> dict[str, Any]:
    """Trains a LoRA adapter on chat JSONL and writes it as a PEFT folder with `training.json`, which is
    also returned. The adapter is not sanitised.

    `method` says what is minimised; lisa needs `alignment_file`, chat JSONL with safe answers.
    `base_name` goes into adapter_config.json (the path of the base if not given). With `checkpoint_dir` a
    run that was stopped goes on where its last checkpoint was; the checkpoints are removed at the end. The
    loss on `validation_file` is measured while training goes on; early stopping needs it. `token_cache` is a
    private folder in which tokens are kept for the next run on the same data. `compile_blocks` is for CUDA
    alone. With `continue_from` the alignment adapter in that folder is trained further instead of a new one;
    its shape takes the place of `lora` (`modelling.continued`). `quantise` trains on a copy of the base in
    four bits (`modelling.nf4`), `liger` with Liger's kernels on CUDA; the adapter is of the base itself.
    Raises InputError and its subclasses for bad data or folders, NonFiniteLossError.

    Under torchrun every process calls this and they train together (`training/ranks.py`). Rank 0 alone writes
    and reports; what the others return lacks what only it knows.
    """
    refuse_wrong_alignment_data(method, alignment_file)
    device = resolve_device(device)
    _refuse_kernels(device, compile_blocks=compile_blocks, liger=liger, quantise=quantise)
    began = None
    if continue_from is not None:
        began, lora = alignment_adapter(continue_from)
    dataset = check_file(data_file)
    alignment = None if alignment_file is None else check_file(alignment_file, min_examples=1)
    validation = None if validation_file is None else check_file(validation_file, min_examples=1)
    store = CheckpointStore(_own_folder(checkpoint_dir, began, quantise)) if checkpoint_dir else None
    cache = TokenCache(token_cache) if token_cache else None
    with ExitStack() as stack:
        ranks = stack.enter_context(joined_ranks(device))
        device = ranks.device
        with ranks.together():
            out = stack.enter_context(output_folder(out_dir)) if ranks.is_first else None
        base = (
            load_base(base_dir, dtype=default_dtype(device), device=device)
            if quantise is None
            else load_base_in_nf4(base_dir, device=device)
        )
        encoded = encode_for(train, base.tokenizer, data_file, cache)
        held_out = (
            None if validation_file is None else encode_for(train, base.tokenizer, validation_file, cache)
        )
        safe = None if alignment_file is None else encode_for(train, base.tokenizer, alignment_file, cache)
        objective = finetune_objective(method, safe.examples if safe else ())
        model = (
            attach(base.model, lora, seed=train.seed)
            if continue_from is None
            else load_adapter(base, continue_from, trainable=True)
        )
        with liger_kernels(model) if liger else nullcontext():
            result = finetune(
                model,
                encoded.examples,
                train,
                device=device,
                validation=held_out.examples if held_out else (),
                objective=objective,
                on_progress=on_progress,
                checkpoint=store,
                checkpoint_every_steps=checkpoint_every_steps,
                ranks=ranks,
                compile_backend="inductor" if compile_blocks else None,
            )
        checkpointing = result.activation_checkpointing
        memory = estimated_bytes(
            model, train, method, encoded, safe, device=device, checkpointing=checkpointing
        )
        provenance = {
            **({} if began is None else began.as_provenance()),
            **({} if quantise is None else {"trained_in": quantise}),
        }
        record = {
            **training_record(method, lora, train, encoded, result, memory=memory),
            "trained_tokens": result.trained_tokens,
            **({} if held_out is None else validation_record(result)),
            "device": device,
            "processes": ranks.size,
            **provenance,
            "liger": liger,
            "dtype": str(base.model.dtype).removeprefix("torch."),
            "sha256": {
                "base": base.sha256,
                "data": dataset.sha256,
                **({} if alignment is None else {"alignment": alignment.sha256}),
                **({} if validation is None else {"validation": validation.sha256}),
            },
            "versions": versions() | {name: version(name) for name in kernels_of(quantise, liger=liger)},
        }
        if out is not None:
            name = str(base_dir) if base_name is None else base_name
            save_adapter(
                model,
                out,
                base_name=name,
                base_revision=None,
                base_sha256=base.sha256,
                provenance=provenance,
            )
            record["sha256"]["adapter"] = file_sha256(out / WEIGHTS_FILE)
            write_record(out, record, result)
    if store and ranks.is_first:
        store.clear()
    return record


def _refuse_kernels(device: str, *, compile_blocks: bool, liger: bool, quantise: str | None) -> None:
    if compile_blocks:
        refuse_compiling_on(device)
    if liger:
        refuse_liger_on(device)
    if quantise is not None:
        refuse_nf4(compile_blocks=compile_blocks)


def kernels_of(quantise: str | None, *, liger: bool) -> list[str]:
    """Packages that computed the training beside torch."""
    return [*([NF4_PACKAGE] if quantise else []), *([LIGER_PACKAGE] if liger else [])]


def _own_folder(checkpoint_dir: str | Path, began: ContinuedFrom | None, quantise: str | None) -> Path:
    """A run that begins with other weights is another run, which its fingerprint does not know."""
    start = "" if began is None else f"from-{began.adapter_sha256[:16]}"
    return Path(checkpoint_dir) / start / (quantise or "")


def training_record(
    method: Spec,
    lora: LoraSpec,
    train: TrainSpec,
    encoded: Encoded,
    result: TrainResult,
    *,
    memory: int | None = None,
) -> dict[str, Any]:
    """What every training says of itself; plain JSON. `memory` is the estimate, bytes; the peak is the GPU's
    in training, on a CPU that of the process so far."""
    return {
        "method": method.model_dump(mode="json"),
        "lora": lora.model_dump(mode="json"),
        "train": train.model_dump(mode="json"),
        "examples": len(encoded.examples),
        "truncated": encoded.num_truncated,
        "dropped": encoded.num_dropped,
        "steps": result.steps,
        "seconds": round(result.seconds, 3),
        "first_loss": result.losses[0],
        "last_loss": result.losses[-1],
        "micro_batch_tokens": result.micro_batch_tokens,
        "activation_checkpointing": result.activation_checkpointing,
        "estimated_memory_bytes": memory,
        "peak_memory_bytes": result.peak_memory_bytes or peak_resident_bytes(),
    }


def estimated_bytes(
    model: Any,
    train: TrainSpec,
    method: TrainingMethod,
    *data: Encoded | None,
    device: str,
    checkpointing: bool | None = None,
) -> int | None:
    """What training on all of `data` needs by `memory.estimate_memory`; None for an architecture that the
    formula does not know."""
    longest = max((len(example) for each in data if each for example in each.examples), default=0)
    found = estimate_of_model(
        model,
        train,
        method,
        longest_row=longest,
        device=torch.device(device),
        checkpointing=checkpointing,
    )
    return None if found is None else found.total


def versions() -> dict[str, str]:
    """Of what the weights depend on."""
    return {"autoclave": __version__, **{name: version(name) for name in ("torch", "transformers", "peft")}}


def encode_for(
    train: TrainSpec, tokenizer: Any, file: str | Path, cache: TokenCache | None = None
) -> Encoded:
    """A chat JSONL file as tokens with the labels that this spec trains, from the cache if it has them.
    Raises what `encode` raises."""
    settings: dict[str, Any] = {
        "max_seq_length": train.max_seq_length,
        "too_long": train.too_long,
        "train_on_inputs": train.train_on_inputs,
    }
    if cache is not None:
        return cache.encoded(tokenizer, file, **settings)
    return encode(tokenizer, read_conversations(file), **settings)


def write_record(out: Path, record: dict[str, Any], result: TrainResult) -> None:
    """`training.json`: the record with the loss of every step."""
    whole = record | {"losses": result.losses, "evaluations": result.evaluations}
    (out / RECORD_FILE).write_text(json.dumps(whole, indent=2) + "\n", encoding="utf-8")


def validation_record(result: TrainResult) -> dict[str, Any]:
    """What measuring the validation loss led to; plain JSON."""
    step, loss = result.best or (None, None)
    return {"early_stopped": result.early_stopped, "best_step": step, "best_valid_loss": loss}


def peak_resident_bytes() -> int:
    """Of this process since it started; Linux counts in KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
