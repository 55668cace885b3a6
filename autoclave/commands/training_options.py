"""Options that finetune and align share, and how two of them are read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from autoclave.errors import InputError
from autoclave.modelling.block_names import ALL_LINEAR, ATTENTION

Epochs = Annotated[int, typer.Option(help="Passes over the data, 1 to 50.")]
BatchSize = Annotated[int, typer.Option(help="Conversations per optimiser step, 1 to 256.")]
LearningRate = Annotated[float, typer.Option(help="Peak learning rate.")]
Schedule = Annotated[str, typer.Option(help="constant, linear or cosine, after the warm-up.")]
WarmupRatio = Annotated[float, typer.Option(help="Share of the steps with a rising learning rate.")]
WeightDecay = Annotated[float, typer.Option(help="AdamW's decoupled decay.")]
MaxGradNorm = Annotated[float, typer.Option(help="Gradients are clipped to this norm.")]
MaxSeqLength = Annotated[int, typer.Option(help="Longest example in tokens.")]
TooLong = Annotated[str, typer.Option(help="What to do with longer ones: truncate or refuse.")]
ActivationCheckpointing = Annotated[
    str,
    typer.Option(
        help="on, off or auto: compute decoder blocks again in the backward pass instead of keeping what "
        "they gave, for less memory and the same weights; auto where the memory is too small otherwise."
    ),
]
Seed = Annotated[int, typer.Option(help="Of the adapter's start, order and dropout.")]
LoraAlpha = Annotated[float, typer.Option(help="The adapter is scaled by lora_alpha / rank.")]
LoraDropout = Annotated[float, typer.Option(help="Dropout on the input of the adapter.")]
TargetModules = Annotated[
    str, typer.Option(help='Comma-separated names of linear layers, "all-linear" or "attention".')
]
Checkpoints = Annotated[
    Path | None, typer.Option(help="Folder for resume checkpoints; run again to go on after a stop.")
]
CheckpointEvery = Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")]
TokenCacheFolder = Annotated[
    Path | None,
    typer.Option(help="Private folder in which tokens are kept for the next run on the same data."),
]
Device = Annotated[str | None, typer.Option(help="cpu or cuda. [default: cuda if there is one]")]
Base = Annotated[Path, typer.Option(help="Folder of the base model (transformers, safetensors).")]
MethodSettings = Annotated[
    list[str] | None,
    typer.Option(
        "--method-setting",
        help="NAME=VALUE, as often as needed: a setting of the method (docs/defences.md).",
    ),
]


_OF_ALL_FUSED_JOBS = (
    "base",
    "fuse",
    "fuse_width",
    "micro_batch_tokens",
    "activation_checkpointing",
    "token_cache",
    "device",
)


_SHAPE = ("lora_r", "lora_alpha", "lora_dropout", "target_modules")


def refuse_options_of_one_job(context: typer.Context) -> None:
    """Raises InputError if an option was given that says something about one job."""
    for parameter in context.command.params:
        name = parameter.name or ""
        source = context.get_parameter_source(name)
        if name in _OF_ALL_FUSED_JOBS or source is None or source.name != "COMMANDLINE":
            continue
        raise InputError(
            f"{parameter.opts[0]} is of one job and does not go with --fuse; write it into the entries of "
            "the file. Methods other than sft, checkpoints and dropout are not fused."
        )


def refuse_shape_of_adapter(context: typer.Context) -> None:
    """Raises InputError if an option says what the adapter that is continued has already."""
    for parameter in context.command.params:
        name = parameter.name or ""
        source = context.get_parameter_source(name)
        if name in _SHAPE and source is not None and source.name == "COMMANDLINE":
            raise InputError(f"{parameter.opts[0]} is that of the adapter that --continue-from names.")


def parsed_settings(pairs: list[str] | None) -> dict[str, str]:
    """Values stay text; the method's spec reads numbers from it. Raises InputError."""
    settings: dict[str, str] = {}
    for pair in pairs or ():
        name, equals, value = pair.partition("=")
        if not equals or name == "name":
            raise InputError(f'--method-setting takes NAME=VALUE, e.g. rho=0.1, got "{pair}".')
        if name in settings:
            raise InputError(f"--method-setting {name} is given twice.")
        settings[name] = value
    return settings


def parsed_target_modules(text: str) -> str | tuple[str, ...]:
    if text in (ALL_LINEAR, ATTENTION):
        return text
    return tuple(name.strip() for name in text.split(",") if name.strip())
