"""Utility: does the model still do the user's task? Exact answers, and loss on held-out answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import torch

from autoclave.data.conversations import check_file, read_conversations
from autoclave.data.messages import Conversation
from autoclave.data.templates import message_for_template
from autoclave.data.tokens import Example, encode
from autoclave.errors import DataError, DataIssue, InputError
from autoclave.evaluation.answer_rules import rule_named
from autoclave.evaluation.intervals import wilson
from autoclave.generation.answers import Generator, Prompt
from autoclave.generation.static_batches import StaticBatches
from autoclave.progress import ProgressCallback
from autoclave.spec import EvaluateSpec
from autoclave.training.validation import measured


@dataclass(frozen=True)
class UtilityResult:
    """Percent of right answers, with its 95 % Wilson interval."""

    utility: float
    utility_interval: tuple[float, float]
    num_examples: int


def read_references(file: str | Path, *, max_examples: int) -> list[tuple[Prompt, str]]:
    """The first conversations of a chat JSONL file as (messages before the last, text of the last).
    Raises DataError if a conversation does not end with an assistant message that follows another."""
    check_file(file, min_examples=1, needs_answer=False)
    pairs = []
    conversations = read_conversations(file, needs_answer=False)
    for line, conversation in enumerate(islice(conversations, max_examples), start=1):
        *before, last = conversation.messages
        if last.role != "assistant" or not before:
            issue = DataIssue(
                line,
                f"/messages/{len(before)}",
                "no_reference_answer",
                "The conversation does not end with an answer to compare with.",
                "End it with an assistant message that holds the right answer.",
            )
            raise DataError([issue], source=str(file))
        pairs.append(([message_for_template(message) for message in before], last.text))
    return pairs


def encode_references(
    tokenizer: Any, file: str | Path, *, max_examples: int, max_seq_length: int
) -> list[Example]:
    """The same conversations as `read_references`, for `held_out_loss`: only the last message is labelled,
    whatever the weights in the file. Longer ones are cut; what has no label left is not in the list.
    Raises what `encode` raises."""
    conversations = islice(read_conversations(file, needs_answer=False), max_examples)
    return encode(
        tokenizer, (_only_last_trained(c) for c in conversations), max_seq_length=max_seq_length
    ).examples


def _only_last_trained(conversation: Conversation) -> Conversation:
    *before, last = conversation.messages
    untrained = [msgspec.structs.replace(m, weight=0) if m.role == "assistant" else m for m in before]
    return msgspec.structs.replace(
        conversation, messages=[*untrained, msgspec.structs.replace(last, weight=1)]
    )


def exact_answer_accuracy(
    model: Any,
    tokenizer: Any,
    references: Sequence[tuple[Prompt, str]],
    spec: EvaluateSpec,
    *,
    answer_rule: str = "exact",
    on_progress: ProgressCallback | None = None,
) -> UtilityResult:
    """The share of `right_answers`, and raises what it raises."""
    return utility_of(
        right_answers(model, tokenizer, references, spec, answer_rule=answer_rule, on_progress=on_progress)
    )


def utility_of(right: Sequence[bool]) -> UtilityResult:
    return UtilityResult(100 * sum(right) / len(right), wilson(sum(right), len(right)), len(right))


def right_answers(
    model: Any,
    tokenizer: Any,
    references: Sequence[tuple[Prompt, str]],
    spec: EvaluateSpec,
    *,
    answer_rule: str = "exact",
    on_progress: ProgressCallback | None = None,
) -> list[bool]:
    """Answers every prompt greedily. Raises what `right_by` raises."""
    generator = StaticBatches(model, tokenizer, batch_tokens=spec.batch_tokens)
    return right_by(generator, references, spec, answer_rule=answer_rule, on_progress=on_progress)


def right_by(
    generator: Generator,
    references: Sequence[tuple[Prompt, str]],
    spec: EvaluateSpec,
    *,
    answer_rule: str = "exact",
    on_progress: ProgressCallback | None = None,
) -> list[bool]:
    """`answer_rule` is a name of `answer_rules.RULES`; by default an answer must be the reference, ignoring
    blanks around. Raises InputError for no examples and for a rule that does not fit them, before any
    answer."""
    if not references:
        raise InputError("there are no examples to measure utility on.")
    rule = rule_named(answer_rule, [reference for _, reference in references])
    answers = generator.answer(
        [prompt for prompt, _ in references], max_new_tokens=spec.max_new_tokens, on_progress=on_progress
    )
    return [
        rule.is_right(answer.text, reference)
        for answer, (_, reference) in zip(answers, references, strict=True)
    ]


def held_out_loss(
    model: Any, examples: Sequence[Example], *, device: str | torch.device, batch_tokens: int = 8192
) -> float:
    """Mean cross entropy per trained token (nats) over all examples; leaves the model in eval mode. Raises
    InputError for no examples."""
    if not examples:
        raise InputError("no held-out example has a trained token.")
    model.eval()
    return measured(model, examples, device=device, batch_tokens=batch_tokens).loss
