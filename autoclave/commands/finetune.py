"""autoclave finetune"""

from __future__ import annotations

import os
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from autoclave.commands.reporting import EXIT_FAILURE, print_result, quiet_libraries
from autoclave.commands.training_options import (
    ActivationCheckpointing,
    Base,
    BatchSize,
    CheckpointEvery,
    Checkpoints,
    Device,
    Epochs,
    LearningRate,
    LoraAlpha,
    LoraDropout,
    MaxGradNorm,
    MaxSeqLength,
    MethodSettings,
    Schedule,
    Seed,
    TargetModules,
    TokenCacheFolder,
    TooLong,
    WarmupRatio,
    WeightDecay,
    parsed_settings,
    parsed_target_modules,
    refuse_options_of_one_job,
    refuse_shape_of_adapter,
)
from autoclave.defences.methods import finetune_method, refuse_wrong_alignment_data
from autoclave.errors import InputError
from autoclave.progress_bar import progress_bar
from autoclave.spec import LoraSpec, TrainSpec
from autoclave.training.fuse_file import read_fuse_file
from autoclave.training.rank_environment import rank_of, refuse_several_processes

_LORA = LoraSpec()
_TRAIN = TrainSpec()
_TARGET_MODULES = ",".join(_LORA.target_modules)


def _early_stopping(
    patience: int | None, min_delta: float | None, validation: Path | None
) -> dict[str, float] | None:
    if patience is None:
        if min_delta is not None:
            raise InputError("--early-stopping-min-delta needs --early-stopping-patience.")
        return None
    if validation is None:
        raise InputError("--early-stopping-patience needs --validation: its loss decides when to stop.")
    return {"patience": patience} if min_delta is None else {"patience": patience, "min_delta": min_delta}


def _finetune_fused(context: typer.Context, base: Path, fuse: Path, options: dict[str, Any]) -> None:
    refuse_options_of_one_job(context)
    refuse_several_processes("--fuse")
    entries = read_fuse_file(fuse)
    from autoclave.training.fuse_folders import finetune_fused_folders

    quiet_libraries()
    with progress_bar() as on_progress:
        record = finetune_fused_folders(base, entries, fuse, **options, on_progress=on_progress)
    print_result(record)
    if any("error" in job for job in record["jobs"]):
        raise typer.Exit(EXIT_FAILURE)


def _finetune_here(folders: tuple[Any, ...], options: dict[str, Any]) -> dict[str, Any]:
    """In this process, which may be one of several; the first one has the progress bar."""
    from autoclave.training.finetune import finetune_folder

    quiet_libraries()
    with progress_bar() if rank_of(os.environ) == 0 else nullcontext() as on_progress:
        return finetune_folder(*folders, **options, on_progress=on_progress)


def finetune(
    *,
    base: Base,
    context: typer.Context,
    data: Annotated[Path | None, typer.Option(help="Chat JSONL, at least 10 examples.")] = None,
    out: Annotated[Path | None, typer.Option(help="New folder for the adapter and training.json.")] = None,
    fuse: Annotated[
        Path | None,
        typer.Option(
            help="Train several jobs together: a JSON list of jobs (docs/training.md) instead of --data, "
            "--out and everything that is of one job."
        ),
    ] = None,
    fuse_width: Annotated[int, typer.Option(min=1, help="Jobs of --fuse that train at once.")] = 8,
    validation: Annotated[
        Path | None, typer.Option(help="Chat JSONL whose loss is measured while training goes on.")
    ] = None,
    method: Annotated[str, typer.Option(help="sft, lisa or ldifs (docs/defences.md).")] = "sft",
    alignment_data: Annotated[
        Path | None, typer.Option(help="Chat JSONL with safe answers, for --method lisa.")
    ] = None,
    method_setting: MethodSettings = None,
    epochs: Epochs = _TRAIN.n_epochs,
    batch_size: BatchSize = _TRAIN.batch_size,
    learning_rate: LearningRate = _TRAIN.learning_rate,
    schedule: Schedule = _TRAIN.schedule,
    warmup_ratio: WarmupRatio = _TRAIN.warmup_ratio,
    weight_decay: WeightDecay = _TRAIN.weight_decay,
    max_grad_norm: MaxGradNorm = _TRAIN.max_grad_norm,
    max_seq_length: MaxSeqLength = _TRAIN.max_seq_length,
    too_long: TooLong = _TRAIN.too_long,
    packing: Annotated[
        bool, typer.Option(help="Put the conversations of a step into rows without padding; the same step.")
    ] = _TRAIN.packing,
    train_on_inputs: Annotated[
        bool, typer.Option(help="Learn system and user messages, too, and the template around them.")
    ] = _TRAIN.train_on_inputs,
    evaluations_per_epoch: Annotated[
        int, typer.Option(help="How often the validation loss is measured, 1 to 20.")
    ] = _TRAIN.evaluations_per_epoch,
    early_stopping_patience: Annotated[
        int | None,
        typer.Option(
            help="Stop after so many evaluations without a lower validation loss, and keep the best weights. "
            "[default: never stop]"
        ),
    ] = None,
    early_stopping_min_delta: Annotated[
        float | None,
        typer.Option(help="How much lower a validation loss must be to count, nats. [default: any]"),
    ] = None,
    micro_batch_tokens: Annotated[
        int, typer.Option(help="Tokens per forward pass, padding included; bounds memory, changes no result.")
    ] = _TRAIN.micro_batch_tokens,
    activation_checkpointing: ActivationCheckpointing = _TRAIN.activation_checkpointing,
    seed: Seed = _TRAIN.seed,
    lora_r: Annotated[int, typer.Option(help="Rank of the adapter.")] = _LORA.r,
    lora_alpha: LoraAlpha = _LORA.lora_alpha,
    lora_dropout: LoraDropout = _LORA.lora_dropout,
    target_modules: TargetModules = _TARGET_MODULES,
    base_name: Annotated[
        str | None, typer.Option(help="Name of the base to write into the adapter. [default: its path]")
    ] = None,
    checkpoints: Checkpoints = None,
    checkpoint_every: CheckpointEvery = 100,
    token_cache: TokenCacheFolder = None,
    compile_blocks: Annotated[
        bool, typer.Option("--compile", help="Compile the decoder blocks (CUDA): slow to start, then faster.")
    ] = False,
    liger: Annotated[
        bool, typer.Option("--liger", help="Train with Liger's kernels (CUDA, extra liger-kernel).")
    ] = False,
    quantise: Annotated[
        str | None,
        typer.Option(
            help="nf4: train on a copy of the base in four bits (QLoRA, extra bitsandbytes). The adapter is "
            "sanitised and measured on the base itself. [default: full precision]"
        ),
    ] = None,
    continue_from: Annotated[
        Path | None,
        typer.Option(
            help="Folder of an alignment LoRA (align --adapter-out): train it further on its base instead of "
            "a new one. Its shape is taken; sanitise the result with --aligned-adapter."
        ),
    ] = None,
    device: Device = None,
    processes: Annotated[
        int,
        typer.Option(
            min=1,
            max=64,
            help="Processes that train together, one per GPU; the same result but for last bits. Or start it "
            "under torchrun.",
        ),
    ] = 1,
) -> None:
    """Train a LoRA adapter on chat JSONL. The result is NOT sanitised.

    With --fuse, several adapters at once; of the other options only --base, --fuse-width,
    --micro-batch-tokens, --activation-checkpointing, --token-cache and --device go with it.

    Only assistant messages are learned, and of those only the ones with a weight other than 0, unless
    --train-on-inputs is given. The same seed gives the same losses. Prints a summary as JSON.
    """
    if fuse is not None:
        train = TrainSpec.model_validate({"activation_checkpointing": activation_checkpointing})
        shared: dict[str, Any] = {
            "width": fuse_width,
            "row_tokens": micro_batch_tokens,
            "activation_checkpointing": train.activation_checkpointing,
            "token_cache": token_cache,
            "device": device,
        }
        _finetune_fused(context, base, fuse, shared)
        return
    if data is None or out is None:
        raise InputError("--data and --out are needed, or --fuse with a list of jobs.")
    if continue_from is not None:
        refuse_shape_of_adapter(context)
    if quantise not in (None, "nf4"):
        raise InputError(f'--quantise takes nf4, got "{quantise}". Leave it out for full precision.')
    chosen = finetune_method(method, parsed_settings(method_setting))
    refuse_wrong_alignment_data(chosen, alignment_data)
    lora = LoraSpec.model_validate(
        {
            "r": lora_r,
            "lora_alpha": lora_alpha,
            "lora_dropout": lora_dropout,
            "target_modules": parsed_target_modules(target_modules),
        }
    )
    train = TrainSpec.model_validate(
        {
            "n_epochs": epochs,
            "batch_size": batch_size,
            "learning_rate": learning_rate,
            "schedule": schedule,
            "warmup_ratio": warmup_ratio,
            "weight_decay": weight_decay,
            "max_grad_norm": max_grad_norm,
            "max_seq_length": max_seq_length,
            "too_long": too_long,
            "packing": packing,
            "train_on_inputs": train_on_inputs,
            "evaluations_per_epoch": evaluations_per_epoch,
            "early_stopping": _early_stopping(early_stopping_patience, early_stopping_min_delta, validation),
            "micro_batch_tokens": micro_batch_tokens,
            "activation_checkpointing": activation_checkpointing,
            "seed": seed,
        }
    )
    folders = (base, data, out, lora, train)
    options = {
        "method": chosen,
        "alignment_file": alignment_data,
        "validation_file": validation,
        "base_name": base_name,
        "device": device,
        "checkpoint_dir": checkpoints,
        "checkpoint_every_steps": checkpoint_every,
        "token_cache": token_cache,
        "compile_blocks": compile_blocks,
        "continue_from": continue_from,
        "quantise": quantise,
        "liger": liger,
    }
    if processes == 1:
        record = _finetune_here(folders, options)
    else:
        refuse_several_processes("--processes")
        from autoclave.training.launch import run_ranks

        record = run_ranks(_finetune_here, folders, options, num_processes=processes)
    if rank_of(os.environ) == 0:
        print_result(record)
