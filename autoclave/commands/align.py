"""autoclave align"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from autoclave.commands.reporting import print_result, quiet_libraries
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
)
from autoclave.defences.methods import align_method, refuse_wrong_harmful_data
from autoclave.progress_bar import progress_bar
from autoclave.spec import LoraSpec, TrainSpec
from autoclave.training.rank_environment import refuse_several_processes

_LORA = LoraSpec()
_TRAIN = TrainSpec()
_TARGET_MODULES = ",".join(_LORA.target_modules)


def align(
    *,
    base: Base,
    data: Annotated[Path, typer.Option(help="Chat JSONL with safe answers, at least 10 examples.")],
    out: Annotated[Path, typer.Option(help="New folder for the aligned base and alignment.json.")],
    method: Annotated[
        str, typer.Option(help="sft, vaccine, repnoise or booster (docs/defences.md).")
    ] = "sft",
    harmful_data: Annotated[
        Path | None, typer.Option(help="Chat JSONL with harmful answers, for repnoise and booster.")
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
        bool, typer.Option(help="Put conversations into rows without padding; not for repnoise.")
    ] = _TRAIN.packing,
    micro_batch_tokens: Annotated[
        int, typer.Option(help="Tokens per forward pass, padding included; changes no result.")
    ] = _TRAIN.micro_batch_tokens,
    activation_checkpointing: ActivationCheckpointing = _TRAIN.activation_checkpointing,
    seed: Seed = _TRAIN.seed,
    lora_r: Annotated[int, typer.Option(help="Rank of the alignment adapter.")] = _LORA.r,
    lora_alpha: LoraAlpha = _LORA.lora_alpha,
    lora_dropout: LoraDropout = _LORA.lora_dropout,
    target_modules: TargetModules = _TARGET_MODULES,
    checkpoints: Checkpoints = None,
    checkpoint_every: CheckpointEvery = 100,
    token_cache: TokenCacheFolder = None,
    adapter_out: Annotated[
        Path | None,
        typer.Option(
            help="New folder for the alignment LoRA itself, unmerged: finetune --continue-from trains it "
            "further on the base that was aligned (docs/defences.md)."
        ),
    ] = None,
    device: Device = None,
) -> None:
    """Make an aligned base: train a LoRA on safe answers, merge it, write the whole model.

    The operator does this once per base; users' adapters are trained on the result. Prints a summary as JSON;
    its sha256.aligned is the hash that `autoclave admin add-base` registers.
    """
    chosen = align_method(method, parsed_settings(method_setting))
    refuse_wrong_harmful_data(chosen, harmful_data)
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
            "micro_batch_tokens": micro_batch_tokens,
            "activation_checkpointing": activation_checkpointing,
            "seed": seed,
        }
    )
    refuse_several_processes("autoclave align")
    from autoclave.defences.align import align_folder

    quiet_libraries()
    with progress_bar() as on_progress:
        record = align_folder(
            base,
            data,
            out,
            method=chosen,
            lora=lora,
            train=train,
            harmful_file=harmful_data,
            device=device,
            checkpoint_dir=checkpoints,
            checkpoint_every_steps=checkpoint_every,
            token_cache=token_cache,
            adapter_out=adapter_out,
            on_progress=on_progress,
        )
    print_result(record)
