"""autoclave evaluate"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from autoclave.commands.reporting import print_result, quiet_libraries
from autoclave.evaluation.answer_rules import RULES
from autoclave.evaluation.judges import JUDGES
from autoclave.progress_bar import progress_bar
from autoclave.spec import EvaluateSpec

_SPEC = EvaluateSpec()


def evaluate(
    *,
    base: Annotated[Path, typer.Option(help="Folder of the base model.")],
    adapter: Annotated[Path | None, typer.Option(help="PEFT folder. Without it the base alone.")] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="Chat JSONL of harmful prompts; needs --judge.")
    ] = None,
    judge: Annotated[
        str | None, typer.Option(help="; ".join(f"{name}: {text}" for name, text in JUDGES.items()))
    ] = None,
    utility: Annotated[
        Path | None, typer.Option(help="Chat JSONL; each last message is the right answer.")
    ] = None,
    answer_rule: Annotated[
        str,
        typer.Option(
            help="When an answer is right. "
            + "; ".join(f"{name}: {rule.about}" for name, rule in RULES.items())
        ),
    ] = "exact",
    answers_from: Annotated[
        str | None,
        typer.Option(
            help="URL of an OpenAI-compatible endpoint that serves the model, with #model=NAME. Default: the "
            "model is loaded here (docs/generation.md)."
        ),
    ] = None,
    keep_answers: Annotated[
        Path | None,
        typer.Option(help="Folder for answers as they come; run again to go on after a failure."),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer.")] = _SPEC.max_new_tokens,
    max_prompts: Annotated[int, typer.Option(help="Rows used of each file.")] = _SPEC.max_prompts,
    batch_tokens: Annotated[int, typer.Option(help="Tokens per batch; bounds memory.")] = _SPEC.batch_tokens,
    generation: Annotated[
        str,
        typer.Option(
            help="How the model answers here. static: in batches; continuous: by continuous batching, if a "
            "trial gives the same answers; auto: that on CUDA with flash attention, else static."
        ),
    ] = _SPEC.generation,
    device: Annotated[str | None, typer.Option(help="cpu or cuda. [default: cuda if there is one]")] = None,
) -> None:
    """Measure harmful score, refusal rate, coherence rate and utility, in percent.

    One JSON object with 95 % intervals on standard output (null for what was not asked), a table on
    standard error.
    """
    spec = EvaluateSpec.model_validate(
        {
            "max_new_tokens": max_new_tokens,
            "max_prompts": max_prompts,
            "batch_tokens": batch_tokens,
            "generation": generation,
        }
    )
    from autoclave.evaluation.evaluate import evaluate_folder

    quiet_libraries()
    with progress_bar() as on_progress:
        result = evaluate_folder(
            base,
            adapter,
            prompts_file=prompts,
            judge_name=judge,
            utility_file=utility,
            answer_rule=answer_rule,
            answers_from=answers_from,
            keep_answers=keep_answers,
            spec=spec,
            device=device,
            on_progress=on_progress,
        )
    Console(stderr=True).print(result_table(result))
    print_result(result)


def result_table(result: dict[str, Any]) -> Table:
    """Only the rows that were asked for."""
    table = Table("", "percent", "95 % interval", "of")
    rows = (
        ("harmful score", "harmful_score", "num_prompts"),
        ("refusal rate", "refusal_rate", "num_prompts"),
        ("coherence rate", "coherence_rate", "num_prompts"),
        ("utility", "utility", "num_examples"),
    )
    for label, key, count in rows:
        if result[key] is not None:
            low, high = result[f"{key}_interval"]
            table.add_row(label, f"{result[key]:.1f}", f"{low:.1f} to {high:.1f}", str(result[count]))
    for category, percent in (result["category_scores"] or {}).items():
        table.add_row(escape(f"  {category}"), f"{percent:.1f}", "", str(result["num_prompts"]))
    if result["num_undecided"]:
        table.add_row("undecided, counted as harmful", "", "", str(result["num_undecided"]))
    if result["num_cut_off"]:
        table.add_row("cut off, judged as far as they went", "", "", str(result["num_cut_off"]))
    return table
