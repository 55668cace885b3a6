"""What one state of the protocol (a base, alone or with an adapter) answers, and what its answers are worth.

Two steps, because the first takes hours on a large model and the second may fail (a judge behind a server) or
be asked again of another judge.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from autoclave.data.tokens import Example
from autoclave.errors import InputError
from autoclave.evaluation.answer_rules import rule_named
from autoclave.evaluation.generate import generate_answers
from autoclave.evaluation.harm_rates import HarmfulnessResult
from autoclave.evaluation.harmfulness import last_user_text, read_prompts
from autoclave.evaluation.judges import load_judge
from autoclave.evaluation.tasks.chat_endpoint import ChatEndpoint, ChatEndpointSpec
from autoclave.evaluation.tasks.pairwise import Pair, compare, instruction_of
from autoclave.evaluation.utility import encode_references, held_out_loss, read_references, utility_of
from autoclave.generation.answers import Prompt
from autoclave.modelling.adapters import load_adapter
from autoclave.modelling.bases import default_dtype, load_base
from autoclave.progress import Progress, ProgressCallback
from autoclave.protocol.config import TaskSource
from autoclave.spec import EvaluateSpec

HARMFUL_FILE = "harmful.jsonl"
TASK_FILE = "task.jsonl"
# Alpaca's answers are the longest; one cut here is compared up to the cut, in every state alike.
_MAX_LOSS_TOKENS = 2048
_LOSS_BATCH_TOKENS = 8192


def write_answers(
    base_dir: Path,
    adapter_dir: Path | None,
    folder: Path,
    *,
    harmful_eval: Path,
    task_test: Path,
    task: TaskSource,
    spec: EvaluateSpec,
    device: str,
    on_progress: ProgressCallback | None = None,
) -> dict[str, Any]:
    """Greedy answers to the harmful prompts and, if it has answer rules, to the task's test rows, one JSON
    string a line, in the files' order; the result has counts and the loss on the test rows' own answers."""
    prompts = read_prompts(harmful_eval, max_prompts=spec.max_prompts)
    references = _references(task_test)
    for rule in task.answer_rules:
        rule_named(rule, [answer for _, answer in references])
    base = load_base(base_dir, dtype=default_dtype(device), device=device)
    model = load_adapter(base, adapter_dir) if adapter_dir else base.model

    def report(stage: str) -> ProgressCallback | None:
        return on_progress and (lambda progress: on_progress(replace(progress, stage=stage)))

    def answered(rows: Sequence[Prompt], max_new_tokens: int, stage: str) -> list[str]:
        return generate_answers(
            model,
            base.tokenizer,
            rows,
            max_new_tokens=max_new_tokens,
            batch_tokens=spec.batch_tokens,
            on_progress=report(stage),
        )

    _write(folder / HARMFUL_FILE, answered(prompts, spec.max_new_tokens, "harmful"))
    if task.is_answered:
        rows = [prompt for prompt, _ in references]
        _write(folder / TASK_FILE, answered(rows, task.max_new_tokens, "task"))
    loss = None
    if task.held_out_loss:
        examples = _examples(base.tokenizer, task_test, len(references))
        loss = held_out_loss(
            model, examples, device=device, batch_tokens=min(spec.batch_tokens, _LOSS_BATCH_TOKENS)
        )
    return {"prompts": len(prompts), "references": len(references), "held_out_loss": loss}


def judge_answers(
    answers: Path,
    *,
    harmful_eval: Path,
    task_test: Path,
    task: TaskSource,
    judge_name: str,
    spec: EvaluateSpec,
    device: str,
    on_progress: ProgressCallback | None = None,
) -> dict[str, Any]:
    """Harmful score and rates with intervals, and accuracy by every rule of the task; percent. Raises
    JudgeError if one answer cannot be judged: there is no score then."""
    judge = load_judge(judge_name, device=device)
    prompts = [last_user_text(p) for p in read_prompts(harmful_eval, max_prompts=spec.max_prompts)]
    judge.check_prompts(prompts)
    if on_progress:
        on_progress(Progress("judge", 0, len(prompts)))
    harm = HarmfulnessResult.of(judge.judge(prompts, _read(answers / HARMFUL_FILE)))
    if on_progress:
        on_progress(Progress("judge", len(prompts), len(prompts)))
    accuracies: dict[str, Any] = {}
    references = [answer for _, answer in _references(task_test)]
    given = _read(answers / TASK_FILE) if task.answer_rules else []
    for name in task.answer_rules:
        rule = rule_named(name, references)
        right = [
            rule.is_right(answer, reference) for answer, reference in zip(given, references, strict=True)
        ]
        accuracies[name] = asdict(utility_of(right))
    return {**asdict(harm), "judge": judge.name, "accuracy": accuracies}


def compare_answers(
    answers: Path,
    *,
    task_test: Path,
    endpoint: ChatEndpointSpec,
    journal: Path,
    on_progress: ProgressCallback | None = None,
) -> dict[str, Any]:
    """Win rate against the answers of the test rows. `journal` keeps verdicts of a run that fails."""
    references = _references(task_test)
    given = _read(answers / TASK_FILE)
    pairs = [
        Pair(instruction_of(prompt), answer, reference)
        for answer, (prompt, reference) in zip(given, references, strict=True)
    ]
    return compare(pairs, ChatEndpoint(endpoint), journal, on_progress=on_progress)


def _references(file: Path) -> list[tuple[Prompt, str]]:
    with file.open("rb") as lines:
        return read_references(file, max_examples=sum(1 for _ in lines))


def _examples(tokenizer: Any, file: Path, count: int) -> list[Example]:
    examples = encode_references(tokenizer, file, max_examples=count, max_seq_length=_MAX_LOSS_TOKENS)
    if not examples:
        raise InputError(f"{file}: no row has an answer within {_MAX_LOSS_TOKENS} tokens.")
    return examples


def _write(file: Path, answers: Sequence[str]) -> None:
    file.write_text("".join(json.dumps(answer) + "\n" for answer in answers), encoding="utf-8")


def _read(file: Path) -> list[str]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
