"""Several fine-tuning jobs on one base at once: what is frozen is computed once for all of them.

A pass holds the next steps of up to `width` jobs in packed rows, each job's tokens side by side. Attention,
norms and the base's matrices see one row; every token goes through the adapter of its own job
(`modelling/lora_layers.py`). The jobs share nothing that is trained: each has its loss, gradient norm,
optimiser, schedule, validation and end, and no number of one can reach another. Small jobs gain most: their
steps are too small to keep a processor busy.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any, cast

import numpy as np
import torch

from autoclave.data.tokens import IGNORED, Example, pack
from autoclave.errors import InputError, ModelError, OutOfMemoryError
from autoclave.modelling.backbone import backbone_of, verify_backbone
from autoclave.modelling.lora_layers import RowsByJob
from autoclave.modelling.packing import PackedBackbone
from autoclave.modelling.short_norms import short_norms
from autoclave.modelling.short_rotary import short_rotary
from autoclave.spec import ActivationCheckpointing
from autoclave.training.activation_memory import ActivationMemory
from autoclave.training.batches import is_cheap_to_halve
from autoclave.training.fused_job import FusedJob, Outcome, RunningJob
from autoclave.training.head_loss import token_losses
from autoclave.training.micro_batches import with_less_memory

OnEnd = Callable[[int, Outcome], None]
# Dropout of the base would draw for all jobs together, so that a job would depend on its neighbours.
_DROPOUTS = (
    "activation_dropout",
    "attention_dropout",
    "attention_probs_dropout_prob",
    "attn_pdrop",
    "dropout",
    "embd_pdrop",
    "hidden_dropout",
    "hidden_dropout_prob",
    "resid_pdrop",
)


def finetune_fused(
    model: Any,
    jobs: Sequence[FusedJob],
    *,
    device: str | torch.device,
    width: int = 8,
    row_tokens: int = 8192,
    on_end: OnEnd | None = None,
    activation_checkpointing: ActivationCheckpointing = "auto",
) -> list[Outcome]:
    """Trains one new adapter per job on the frozen base `model`, which ends as it was (in eval mode).

    The weights, losses and evaluations of a job are those that `attach` and `finetune` give it alone, but for
    last bits; its `packing` and `micro_batch_tokens` decide nothing here. At most `width` jobs run at once,
    in the order given; when one ends, the next takes its place. `row_tokens` bounds the tokens of a forward
    pass (a single longer example is a pass of its own).

    A job whose loss or gradient is not finite, or whose `on_progress` raises CancelledError, ends alone, with
    the error in its outcome; any other exception ends all. `on_end` gets each job's index and outcome when it
    ends. A step that runs out of memory is done again with half of the largest row at a time, or with blocks
    that are computed again in the backward pass ("auto" does that in no other case here). Raises
    InputError and ModelError, naming the job, before anything is trained, OutOfMemoryError if one example
    is too much.
    """
    device = torch.device(device)
    if not jobs:
        raise InputError("there is no job to train.")
    if width < 1:
        raise InputError(f"at least one job must run at a time, got {width}.")
    for job in jobs:
        job.refuse_what_cannot_be_fused()
    _refuse_dropout(model)
    verify_backbone(model)
    model.eval()
    running = [RunningJob.of(model, job, device=device) for job in jobs]
    activations = ActivationMemory(model, activation_checkpointing)
    fused = _Fused(model, running, activations, device=device, row_tokens=row_tokens)
    with ExitStack() as stack:
        stack.enter_context(fused.adapters.installed())
        if device.type == "cpu":
            stack.enter_context(short_norms(model))
            stack.enter_context(short_rotary(model))
        stack.enter_context(activations.installed())
        fused.to_the_end(width, on_end)
    return [run.outcome for run in running]


class _Fused:
    def __init__(
        self,
        model: Any,
        running: Sequence[RunningJob],
        activations: ActivationMemory,
        *,
        device: torch.device,
        row_tokens: int,
    ) -> None:
        self._model, self._running, self._device, self._row_tokens = model, running, device, row_tokens
        self._activations = activations
        self._packed = PackedBackbone(backbone_of(model), device)
        self.adapters = RowsByJob(model, [run.factors for run in running])

    def to_the_end(self, width: int, on_end: OnEnd | None) -> None:
        waiting = list(range(len(self._running)))
        active: list[int] = []
        while waiting or active:
            while waiting and len(active) < width:
                active.append(waiting.pop(0))
            began = time.perf_counter()
            self._step(active)
            for index in active:
                run = self._running[index]
                run.seconds += time.perf_counter() - began
                with self.adapters.only(index):
                    run.after_step(self._model)
                if run.has_ended and on_end is not None:
                    on_end(index, run.outcome)
            active = [index for index in active if not self._running[index].has_ended]

    def _step(self, active: Sequence[int]) -> None:
        """One optimiser step of each active job."""
        examples = {index: self._running[index].next_examples() for index in active}

        def work() -> list[list[float]]:
            for index in active:
                self._running[index].forget_gradient()
            return self._accumulated(examples)

        done = with_less_memory(work, lambda: self._do_with_less(examples))
        if done is None:
            longest = max(len(example) for chosen in examples.values() for example in chosen)
            raise OutOfMemoryError(1 + max(self._running[index].steps for index in active), longest)
        for index, (loss, norm, accuracy) in zip(active, done[0], strict=True):
            trained = sum(map(_num_trained, examples[index]))
            self._running[index].update(loss, norm, accuracy, trained, sum(map(len, examples[index])))

    def _do_with_less(self, examples: dict[int, list[Example]]) -> bool:
        shared = max(
            (
                sum(len(examples[index][i]) - 1 for index, i in row)
                for row in _rows(examples, self._row_tokens)
                if len(row) > 1
            ),
            default=0,
        )

        def halve() -> bool:
            if shared:
                self._row_tokens = shared // 2
            return bool(shared)

        cheap = is_cheap_to_halve(shared, self._device)
        return self._activations.do_with_less(halve, cheap_to_halve=cheap)

    def _accumulated(self, examples: dict[int, list[Example]]) -> list[list[float]]:
        """Adds up the gradients of a step; loss, norm of the gradient and accuracy of each job."""
        active = list(examples)
        trained = {index: [_num_trained(e) for e in chosen] for index, chosen in examples.items()}
        totals = torch.tensor([sum(counts) for counts in trained.values()], device=self._device)  # (K,)
        place = {index: k for k, index in enumerate(active)}
        sums = torch.zeros((2, len(active)), device=self._device)  # of losses, of right tokens
        for row in _rows(examples, self._row_tokens):
            batch = pack([examples[index][i] for index, i in row], device=self._device)
            assert batch.packed_lengths is not None
            counts = [trained[index][i] for index, i in row]
            self.adapters.rows = (_spans(row, batch.packed_lengths), _spans(row, counts))
            targets = batch.labels[0, 1:]  # (T,)
            (tokens,) = torch.nonzero(targets != IGNORED, as_tuple=True)  # (N,)
            hidden = self._packed.hidden_states_of(tokens, batch.input_ids[:, :-1], batch.packed_lengths)
            losses, is_right = token_losses(backbone_of(self._model), hidden, targets[tokens])
            owners = torch.tensor([place[index] for index, _ in row])
            owner = owners.repeat_interleave(torch.tensor(counts)).to(self._device)  # (N,)
            # Not the sum of the losses: one that is NaN would make it NaN, but no gradient of another.
            torch.autograd.backward(losses, (1 / totals)[owner].to(losses.dtype))
            sums[0].index_add_(0, owner, losses.detach().float())
            sums[1].index_add_(0, owner, is_right.float())
        norms = torch.stack([self._running[index].clipped_norm() for index in active])  # (K,)
        figures = torch.stack(
            (sums[0] / totals, norms, sums[1] / totals)
        ).T.tolist()  # waits for the GPU once
        return cast("list[list[float]]", figures)


def _rows(examples: dict[int, list[Example]], row_tokens: int) -> Iterator[list[tuple[int, int]]]:
    """(job, example) in the order of jobs, cut where a row is full."""
    row: list[tuple[int, int]] = []
    free = row_tokens
    for job, chosen in examples.items():
        for i, example in enumerate(chosen):
            length = len(example) - 1  # the last token of an example is no input
            if row and length > free:
                yield row
                row, free = [], row_tokens
            row.append((job, i))
            free -= length
    yield row


def _spans(row: Sequence[tuple[int, int]], lengths: Sequence[int]) -> list[tuple[int, int, int]]:
    """(job, start, end) of each job's tokens in a row."""
    spans: list[tuple[int, int, int]] = []
    end = 0
    for (job, _), length in zip(row, lengths, strict=True):
        start, end = end, end + length
        if spans and spans[-1][0] == job:
            start = spans.pop()[1]
        spans.append((job, start, end))
    return spans


def _num_trained(example: Example) -> int:
    return int(np.count_nonzero(example.labels[1:] != IGNORED))


def _refuse_dropout(model: Any) -> None:
    config = model.config.get_text_config()
    names = [name for name in _DROPOUTS if getattr(config, name, 0.0)]
    if names:
        raise ModelError(
            f"the base has dropout of its own ({', '.join(names)}), so jobs would depend on each other; "
            "train them one by one, or set it to 0 in config.json."
        )
