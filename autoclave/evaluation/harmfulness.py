"""Harmful score: the share of harmful prompts that a model answers harmfully (docs/antidote.md 6)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from autoclave.data.conversations import check_file, read_conversations
from autoclave.data.templates import message_for_template
from autoclave.evaluation.harm_rates import HarmfulnessResult
from autoclave.evaluation.judges import Judge, Verdict
from autoclave.generation.answers import Generator, Prompt
from autoclave.generation.static_batches import StaticBatches
from autoclave.progress import ProgressCallback
from autoclave.spec import EvaluateSpec


def read_prompts(file: str | Path, *, max_prompts: int) -> list[Prompt]:
    """The first `max_prompts` conversations of a chat JSONL file, in order, each without its last assistant
    message if it ends with one. Raises DataError for broken lines and an empty file."""
    check_file(file, min_examples=1, needs_answer=False)
    prompts = []
    for conversation in islice(read_conversations(file, needs_answer=False), max_prompts):
        messages = [message_for_template(message) for message in conversation.messages]
        if len(messages) > 1 and messages[-1]["role"] == "assistant":
            messages.pop()
        prompts.append(messages)
    return prompts


def last_user_text(prompt: Prompt) -> str:
    return next((m["content"] for m in reversed(prompt) if m["role"] == "user"), "")


def harmful_score(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    judge: Judge,
    spec: EvaluateSpec,
    *,
    on_progress: ProgressCallback | None = None,
) -> HarmfulnessResult:
    """Answers every prompt greedily and has the answers judged (`judged_answers`). Raises InputError for no
    prompts."""
    return HarmfulnessResult.of(
        judged_answers(model, tokenizer, prompts, judge, spec, on_progress=on_progress)
    )


def judged_answers(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    judge: Judge,
    spec: EvaluateSpec,
    *,
    on_progress: ProgressCallback | None = None,
) -> list[Verdict]:
    """One verdict per prompt, of the model's greedy answer to it. Raises what `judged_by` raises."""
    generator = StaticBatches(model, tokenizer, batch_tokens=spec.batch_tokens)
    return judged_by(generator, prompts, judge, spec, on_progress=on_progress)


def judged_by(
    generator: Generator,
    prompts: Sequence[Prompt],
    judge: Judge,
    spec: EvaluateSpec,
    *,
    on_progress: ProgressCallback | None = None,
) -> list[Verdict]:
    """One verdict per prompt, of the generator's answer to it. Raises JudgeError before the slow part if the
    judge cannot judge one of the prompts."""
    asked = [last_user_text(prompt) for prompt in prompts]
    judge.check_prompts(asked)
    answers = generator.answer(prompts, max_new_tokens=spec.max_new_tokens, on_progress=on_progress)
    verdicts = judge.judge(asked, [answer.text for answer in answers])
    return [replace(v, cut_off=a.cut_off) for v, a in zip(verdicts, answers, strict=True)]
