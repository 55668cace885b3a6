"""Fine-tunes the adapter on the user's data, with resume checkpoints in the private storage."""

from __future__ import annotations

import logging
import math
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from autoclave.defences.methods import finetune_objective
from autoclave.hashing import file_sha256
from autoclave.modelling.adapters import attach
from autoclave.progress import Progress
from autoclave.training.checkpoint import CheckpointStore, TrainState
from autoclave.training.finetune import peak_resident_bytes, validation_record
from autoclave.training.loop import finetune
from autoclave.training.objective import Objective
from autoclave.training.ranks import ALONE, Ranks
from service.jobs.states import Stage
from service.storage import StorageUnavailableError
from workers.attempt import Attempt
from workers.messages import AdapterKept, Checkpointed, StageFinished
from workers.profile_files import alignment, unusable_profile
from workers.stages.kept import take_kept
from workers.together import num_processes, run_together

logger = logging.getLogger(__name__)


def train(attempt: Attempt) -> StageFinished:
    """Raises NonFiniteLossError when training diverges. A job that starts from a kept adapter takes that for
    its own (`take_kept`)."""
    order = attempt.order
    if order.starts_from is not None:
        return take_kept(attempt, order.starts_from)
    count = num_processes(order, attempt.device)
    return run_together(attempt, train_as, count) if count > 1 else train_as(attempt, ALONE)


def train_as(attempt: Attempt, ranks: Ranks) -> StageFinished:
    """What one of several processes does, or the only one. Only the first has anything to say or to store."""
    order, spec = attempt.order, attempt.spec
    encoded = attempt.training_set()
    objective = _objective(attempt)
    base = attempt.bare_base()
    model = attempt.wear(attach(base.model, spec.lora, seed=spec.train.seed))
    checkpoints = UploadedCheckpoints(
        attempt,
        every_seconds=order.checkpoint_every_seconds,
        model=model,
        steps_per_epoch=math.ceil(len(encoded.examples) / spec.train.batch_size),
        objective=objective,
    )
    if order.checkpoint is not None and ranks.is_first:
        checkpoints.fetch(order.checkpoint["prefix"])
        attempt.reporter.note(f"Resuming after step {order.checkpoint['step']}")

    at_once, recomputed = spec.train.micro_batch_tokens, spec.train.activation_checkpointing == "on"

    def on_progress(progress: Progress) -> None:
        nonlocal at_once, recomputed
        if progress.activation_checkpointing and not recomputed:
            recomputed = True
            text = (
                f"The memory is short: from step {progress.step} on layers are computed twice, the same steps"
            )
            attempt.reporter.note(text, level="warn", activation_checkpointing=True)
        tokens = progress.micro_batch_tokens
        if tokens is not None and tokens < at_once:
            at_once = tokens
            text = f"The memory was not enough: from step {progress.step} on {tokens} tokens at a time"
            attempt.reporter.note(f"{text}, the same steps", level="warn", micro_batch_tokens=tokens)
        if not objective.is_on_data(progress.step - 1):
            progress = replace(progress, loss=None, accuracy=None)  # of the operator's data
        attempt.reporter.on_training_progress(progress, saved=checkpoints.saved_step == progress.step)

    result = finetune(
        model,
        encoded.examples,
        spec.train,
        device=attempt.device,
        objective=objective,
        validation=attempt.validation_set().examples,
        on_progress=on_progress,
        checkpoint=checkpoints,
        checkpoint_every_steps=1,  # asked after every step; the store decides by the clock
        ranks=ranks,
        memory_bytes=order.memory_bytes or None,
    )
    if not ranks.is_first:
        return StageFinished(stage=Stage.TRAIN, output={})
    attempt.reporter.send_curve()
    if result.best is not None and result.early_stopped:
        step, loss = result.best
        text = f"Stopped early after step {result.steps}: the weights of step {step} are kept"
        attempt.reporter.note(f"{text}, validation loss={loss:.4f}", best_step=step, best_valid_loss=loss)
    folder = attempt.saved_adapter(Stage.TRAIN, model)
    stored = attempt.store(Stage.TRAIN, folder)
    figures = _figures(
        own_losses(result.losses, objective),
        len(result.losses),
        result.trained_tokens,
        result.seconds,
        peak_memory_bytes=result.peak_memory_bytes or peak_resident_bytes(),
    )
    figures |= {"planned_steps": result.planned_steps, **validation_record(result)}
    figures |= {
        "processes": ranks.size,
        "micro_batch_tokens": result.micro_batch_tokens,
        "activation_checkpointing": result.activation_checkpointing,
        "estimated_memory_bytes": attempt.outputs[Stage.PREPARE.value].get("memory_bytes"),
    }
    # The adapter is that of the best evaluation where training may stop early. An epoch's end that it is the
    # same as is kept once, not twice.
    step = result.steps
    if spec.train.early_stopping is not None and result.best is not None:
        step = result.best[0]
    attempt.reporter.say(_kept(stored, figures, step, result.losses, result.evaluations))
    return StageFinished(stage=Stage.TRAIN, output=stored | figures)


def _objective(attempt: Attempt) -> Objective:
    """Raises StageError if the operator's safe answers are not those that were checked."""
    if not attempt.trains_on_alignment:
        return finetune_objective(attempt.spec.defence)
    file = attempt.profile.alignment
    checked = attempt.outputs[Stage.PREPARE.value]["profile_sha256"]["alignment"]
    if file is None or not Path(file).is_file() or file_sha256(file) != checked:
        logger.error("the alignment data of the safety profile changed since the job was prepared: %s", file)
        raise unusable_profile()
    safe = alignment(attempt)
    attempt.reporter.note("Training takes turns between the file and this server's examples of safe answers")
    return finetune_objective(attempt.spec.defence, safe.examples)


def own_losses(losses: Sequence[float], objective: Objective) -> list[float]:
    """Those of the steps that were on the user's data."""
    return [loss for step, loss in enumerate(losses) if objective.is_on_data(step)]


def _figures(
    losses: Sequence[float],
    steps: int,
    trained_tokens: int,
    seconds: float,
    *,
    peak_memory_bytes: int | None,
) -> dict[str, Any]:
    """`losses` are of the user's data, of all `steps`."""
    return {
        "steps": steps,
        "first_loss": losses[0],
        "final_loss": losses[-1],
        "trained_tokens": trained_tokens,
        "seconds": seconds,
        "peak_memory_bytes": peak_memory_bytes,
    }


def _kept(
    stored: dict[str, str],
    figures: dict[str, Any],
    step: int,
    losses: Sequence[float],
    evaluations: Sequence[tuple[int, float]],
) -> AdapterKept:
    metrics: dict[str, float | None] = {"step": step, "train_loss": losses[step - 1]}
    measured = dict(evaluations)
    if step in measured:
        metrics["valid_loss"] = measured[step]
    return AdapterKept(
        prefix=stored["prefix"],
        step=step,
        adapter_sha256=stored["adapter_sha256"],
        metrics=metrics,
        figures=figures,
    )


class UploadedCheckpoints(CheckpointStore):
    """Saves when the last save is long enough ago, or when the job is to pause or its worker shuts down;
    uploads, and says so.

    At the end of an epoch it also keeps the adapter alone, which may be released later. That comes first: an
    attempt that goes on behind a resume checkpoint will not pass the epoch's end again.
    """

    def __init__(
        self,
        attempt: Attempt,
        *,
        every_seconds: float,
        model: Any,
        steps_per_epoch: int,
        objective: Objective,
    ) -> None:
        super().__init__(attempt.scratch / "checkpoint")
        self._attempt = attempt
        self._model = model
        self._steps_per_epoch = steps_per_epoch
        self._objective = objective
        self._every_seconds = every_seconds
        self._saved_at = time.monotonic()
        self.saved_step: int | None = None

    def fetch(self, prefix: str) -> None:
        self._attempt.storage.download_folder(prefix, Path(self.dir) / "latest")

    def save(self, state: TrainState) -> None:
        data_steps = self._objective.data_steps_before(state.step)
        if data_steps % self._steps_per_epoch == 0 and self._objective.is_on_data(state.step - 1):
            self._keep(state)
        is_due = time.monotonic() - self._saved_at >= self._every_seconds
        if not is_due and not self._attempt.reporter.pausing():
            return
        super().save(state)
        self._attempt.reporter.send_curve()  # what lies before the checkpoint will not be repeated
        # A prefix of its own: a reader of the one before it must not see half of this one.
        prefix = f"{self._attempt.prefix(Stage.TRAIN)}-checkpoint-{state.step}"
        try:
            self._attempt.storage.upload_folder(prefix, Path(self.dir) / "latest")
        except StorageUnavailableError as error:
            # Training goes on: should it be killed, the checkpoint before this one still stands.
            text = f"Checkpoint after step {state.step} not saved, the storage does not answer"
            self._attempt.reporter.note(text, level="warn")
            logger.warning("%s: %s", text, error)
            self._saved_at = time.monotonic()
            return
        self._attempt.reporter.say(Checkpointed(prefix=prefix, step=state.step))
        self._saved_at = time.monotonic()
        self.saved_step = state.step

    def _keep(self, state: TrainState) -> None:
        beside = f"-kept-{state.step}"
        folder = self._attempt.saved_adapter(Stage.TRAIN, self._model, beside=beside)
        stored = self._attempt.store(Stage.TRAIN, folder, beside=beside)
        shutil.rmtree(folder)
        figures = _figures(
            own_losses(state.losses, self._objective),
            state.step,
            state.trained_tokens,
            state.seconds,
            peak_memory_bytes=None,
        )
        self._attempt.reporter.say(_kept(stored, figures, state.step, state.losses, state.evaluations))
