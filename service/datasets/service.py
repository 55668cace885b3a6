"""Validating, previewing and estimating. Everything is read as a stream; no text is kept or logged."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable

from autoclave.data.conversations import ConversationChecker
from autoclave.data.inspection import Inspection, Inspector, as_json, inspect
from autoclave.data.light_tokenizer import LightTokenizer
from autoclave.data.messages import Conversation
from autoclave.data.templates import render
from autoclave.data.token_counts import count_trained
from autoclave.defences.cost import planned_steps, relative_cost
from autoclave.errors import ModelError
from autoclave.memory import estimate_memory, weight_shapes
from autoclave.spec import JobSpec, TrainSpec
from service.datasets.alignment_rows import longest_alignment_row
from service.datasets.memory_fit import memory_fit
from service.datasets.schemas import (
    DatasetReport,
    Estimate,
    MemoryByDevice,
    PreviewRequest,
    PreviewRow,
    Seconds,
    ValidationReport,
)
from service.datasets.sources import BaseInfo, tokenizer_or_reason
from service.errors import invalid
from service.files.service import UploadLimits
from service.fleet.usable import UsableWorkers


def validate(
    training: Iterable[bytes],
    validation: Iterable[bytes] | None,
    *,
    base: BaseInfo | None,
    train: TrainSpec,
    limits: UploadLimits,
) -> ValidationReport:
    tokenizer, reason = tokenizer_or_reason(base)
    first = Inspector(
        tokenizer=tokenizer,
        tokens_unavailable=reason,
        max_seq_length=train.max_seq_length,
        train_on_inputs=train.train_on_inputs,
        min_examples=limits.min_examples,
        max_line_bytes=limits.max_line_bytes,
    )
    trained = inspect(training, first)
    if validation is None:
        return ValidationReport(valid=trained.valid, training=_report(trained), validation=None, overlap=None)
    second = Inspector(
        tokenizer=tokenizer,
        tokens_unavailable=reason,
        max_seq_length=train.max_seq_length,
        train_on_inputs=train.train_on_inputs,
        min_examples=1,
        max_line_bytes=limits.max_line_bytes,
        against=first,
    )
    validated = inspect(validation, second)
    return ValidationReport.model_validate(
        {
            "valid": trained.valid and validated.valid,
            "training": as_json(trained),
            "validation": as_json(validated),
            "overlap": as_json(second.overlap()),
        }
    )


def _report(inspection: Inspection) -> DatasetReport:
    return DatasetReport.model_validate(as_json(inspection))


def preview(
    chunks: Iterable[bytes], request: PreviewRequest, *, base: BaseInfo, train: TrainSpec, max_line_bytes: int
) -> list[PreviewRow]:
    """Raises ApiError 400 for a row that is not there, or if the conversation cannot be written as text."""
    wanted = request.rows or list(range(1, request.limit + 1))
    found = _rows(chunks, set(wanted), max_line_bytes=max_line_bytes)
    missing = [row for row in wanted if row not in found]
    if request.rows is not None and missing:
        raise invalid(f"The file has no row {missing[0]}; rows count from 1.", param="rows")
    try:
        tokenizer = base.tokenizer()
        return [_preview_row(row, found[row], tokenizer, train) for row in wanted if row in found]
    except ModelError as error:
        raise invalid(
            f"A preview for the model {base.id!r} is not possible: {error}",
            param="model",
            code="preview_unavailable",
        ) from error


def _rows(chunks: Iterable[bytes], wanted: set[int], *, max_line_bytes: int) -> dict[int, Conversation]:
    found: dict[int, Conversation] = {}

    def keep(line: int, conversation: Conversation) -> None:
        if line in wanted:
            found[line] = conversation

    checker = ConversationChecker(max_line_bytes=max_line_bytes, on_example=keep)
    for chunk in chunks:
        checker.feed(chunk)
        if len(found) == len(wanted):
            return found
    checker.end()
    return found


def _preview_row(
    row: int, conversation: Conversation, tokenizer: LightTokenizer, train: TrainSpec
) -> PreviewRow:
    text, spans = render(tokenizer, conversation, train_on_inputs=train.train_on_inputs)
    (tokens,) = tokenizer.encode([text])
    return PreviewRow(
        row=row,
        text=text,
        trained_spans=spans,
        num_tokens=len(tokens.ids),
        num_trained_tokens=count_trained(tokens.offsets, spans, max_seq_length=train.max_seq_length),
        truncated=len(tokens.ids) > train.max_seq_length,
    )


def estimate(
    chunks: Iterable[bytes],
    *,
    file_id: str,
    base: BaseInfo,
    spec: JobSpec,
    seconds_per_token: list[float],
    workers: UsableWorkers,
    limits: UploadLimits,
) -> Estimate:
    tokenizer, reason = tokenizer_or_reason(base)
    inspector = Inspector(
        tokenizer=tokenizer,
        tokens_unavailable=reason,
        max_seq_length=spec.train.max_seq_length,
        train_on_inputs=spec.train.train_on_inputs,
        min_examples=limits.min_examples,
        max_line_bytes=limits.max_line_bytes,
    )
    found = inspect(chunks, inspector)
    tokens = found.tokens
    # Of a long file only the first rows were counted; the rest is taken to be like them.
    scale = found.num_examples / tokens.num_rows if tokens else 1.0
    num_left_out = round(tokens.num_untrained * scale) if tokens else None
    num_trained_on = found.num_examples - (num_left_out or 0)
    tokens_per_epoch = round(tokens.cut_total * scale) if tokens else None
    memory, memory_reason = None, reason
    if tokens is not None and tokenizer is not None:
        longest_row = min(tokens.per_row.max, spec.train.max_seq_length)
        longest_row = max(longest_row, longest_alignment_row(base, spec, tokenizer))
        memory, memory_reason = _memory(base, spec, longest_row)
    user_steps = spec.train.n_epochs * math.ceil(num_trained_on / spec.train.batch_size)
    cost = relative_cost(spec.defence, user_steps) if user_steps else 1.0
    return Estimate(
        model=base.id,
        training_file=file_id,
        num_examples=found.num_examples,
        n_epochs=spec.train.n_epochs,
        batch_size=spec.train.batch_size,
        steps=planned_steps(spec.defence, user_steps),
        defence=spec.defence.name,
        relative_cost=cost,
        tokens_per_epoch=tokens_per_epoch,
        trained_tokens=round(tokens.trained_tokens * scale) * spec.train.n_epochs if tokens else None,
        num_cut=round(tokens.num_over_max_seq_length * scale) if tokens else None,
        num_left_out=num_left_out,
        complete=tokens is not None and tokens.complete,
        tokens_unavailable=found.tokens_unavailable,
        memory_bytes=memory,
        memory_unavailable=memory_reason,
        memory_fit=memory_fit(workers, memory, memory_reason, batch_size=spec.train.batch_size),
        train_seconds=_seconds(seconds_per_token, tokens_per_epoch, spec.train.n_epochs * cost),
    )


def _memory(base: BaseInfo, spec: JobSpec, longest_row: int) -> tuple[MemoryByDevice | None, str | None]:
    try:
        shapes = weight_shapes(base.folder)
        by_device = {
            device: as_json(
                estimate_memory(
                    shapes,
                    spec.lora,
                    spec.train,
                    longest_row=longest_row,
                    device=device,
                    method=spec.defence,
                )
            )
            for device in ("cpu", "cuda")
        }
    except ModelError as error:
        return None, str(error)
    return MemoryByDevice.model_validate(by_device), None


def _seconds(per_token: list[float], tokens_per_epoch: int | None, num_passes: float) -> Seconds | None:
    """`num_passes` over the data, as plain training would count them."""
    if not per_token or tokens_per_epoch is None:
        return None
    num_tokens = tokens_per_epoch * num_passes
    return Seconds(
        median=statistics.median(per_token) * num_tokens,
        fastest=min(per_token) * num_tokens,
        slowest=max(per_token) * num_tokens,
        num_jobs=len(per_token),
    )
