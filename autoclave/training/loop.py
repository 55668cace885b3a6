"""Fine-tuning an adapter: the project's own loop over optimiser steps (`run.py` takes them).

Deterministic for a seed, a machine and a number of threads. It writes nothing but checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch

from autoclave.data.tokens import Example
from autoclave.errors import InputError
from autoclave.modelling.backbone import verify_backbone
from autoclave.modelling.compiled_blocks import compiled_blocks
from autoclave.modelling.lora_layers import short_lora
from autoclave.modelling.short_norms import short_norms
from autoclave.modelling.short_rotary import short_rotary
from autoclave.progress import ProgressCallback
from autoclave.spec import TrainSpec
from autoclave.training.checkpoint import CheckpointStore
from autoclave.training.objective import Objective
from autoclave.training.ranks import ALONE, Ranks
from autoclave.training.result import TrainResult
from autoclave.training.run import Run


def finetune(
    model: Any,
    examples: Sequence[Example],
    spec: TrainSpec,
    *,
    device: str | torch.device,
    validation: Sequence[Example] = (),
    objective: Objective | None = None,
    on_progress: ProgressCallback | None = None,
    checkpoint: CheckpointStore | None = None,
    checkpoint_every_steps: int = 100,
    ranks: Ranks = ALONE,
    compile_backend: str | None = None,
    memory_bytes: int | None = None,
) -> TrainResult:
    """Trains the parameters of `model` that require gradients, in place; leaves it in eval mode.

    Each epoch visits every example once, in a permutation drawn from the seed; its last step may be
    smaller. A step is `batch_size` conversations; its loss is the sum over their trained tokens divided
    by the number of those tokens, so cutting the step into micro-batches changes memory and last bits,
    not the result. AdamW with betas (0.9, 0.999), decoupled weight decay on every trained parameter,
    gradient norm clipped over all of them. With `spec.packing` the same step is computed in rows
    without padding; only last bits differ, and what dropout draws. Another `objective` (one per run) may take
    more steps and other examples; the losses are still mean cross entropies, without what it adds.

    The loss on `validation` is measured `spec.evaluations_per_epoch` times per epoch (`validation.is_due`).
    With `spec.early_stopping` the run ends by it (`validation.should_stop`), and however it ends, the weights
    with the lowest validation loss are in the model.

    With `checkpoint`, saves every `checkpoint_every_steps` steps and starts from the checkpoint that the
    store holds, if any; a resumed run ends with the same bits (float32, CPU) as an unbroken one.
    `micro_batch_tokens` may differ between attempts, at the cost of the last bits. `compile_backend` is what
    torch.compile turns the decoder blocks over to (`compiled_blocks`). `memory_bytes` are what the run may
    take of its device, if that is less than there is; `spec.activation_checkpointing` "auto" goes by it.

    Several `ranks` call this alike and get what one process gets, but for last bits and dropout. Only rank 0
    uses `checkpoint` and `on_progress`. What one raises ends all. Their number may differ between attempts.

    A step that runs out of memory is done again from its start with half the micro-batch, down to one
    conversation at a time, or with decoder blocks that are computed again in the backward pass, whichever
    costs less (`ActivationMemory.do_with_less`); it stays so for the rest of the run. Where one of several
    ranks runs out, all of them do it again.

    Raises OutOfMemoryError with the estimate of what is needed if that is not enough, NonFiniteLossError
    before the step that would have used a NaN or infinite loss or gradient, InputError for no examples,
    early stopping without validation examples, or another run's checkpoint, ModelError for an unsupported
    architecture, and whatever `on_progress` raises, at a step boundary.
    """
    if not examples:
        raise InputError("there is nothing to train on: no example has a trained token.")
    if spec.early_stopping is not None and not validation:
        raise InputError("early stopping needs a validation set; give one, or leave early_stopping out.")
    if ranks.size > 1 and objective is not None and not objective.over_ranks:
        raise InputError(f"{type(objective).__name__} trains in one process only; start it with one.")
    verify_backbone(model)
    model.eval()
    ranks.start_alike(parameter for parameter in model.parameters() if parameter.requires_grad)
    run = Run(
        model,
        examples,
        spec,
        validation=validation,
        device=torch.device(device),
        objective=objective,
        ranks=ranks,
    )
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(spec.seed)
        with ranks.together():
            saved = checkpoint.load() if checkpoint and ranks.is_first else None
        saved = ranks.from_first(saved)
        if saved is not None:
            run.restore(saved)
        run.choose_memory(memory_bytes)
        if run.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(run.device)
        model.train()
        try:
            with ExitStack() as stack:
                stack.enter_context(short_lora(model, joined=compile_backend is None))
                if compile_backend is not None:
                    stack.enter_context(compiled_blocks(model, compile_backend))
                elif run.device.type == "cpu":
                    stack.enter_context(short_norms(model))
                    stack.enter_context(short_rotary(model))
                stack.enter_context(run.activations.installed())
                run.to_the_end(on_progress, checkpoint, checkpoint_every_steps)
        finally:
            model.eval()
    peak = torch.cuda.max_memory_allocated(run.device) if run.device.type == "cuda" else None
    return TrainResult(
        steps=run.step,
        losses=run.losses,
        trained_tokens=run.trained_tokens,
        seconds=run.seconds,
        peak_memory_bytes=peak,
        planned_steps=run.total_steps,
        early_stopped=run.step < run.total_steps,
        evaluations=run.validation.evaluations if run.validation else [],
        micro_batch_tokens=run.micro_batches.max_tokens,
        activation_checkpointing=run.activations.is_checkpointed,
    )
