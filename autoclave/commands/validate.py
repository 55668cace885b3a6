"""`autoclave validate`: what is wrong with a dataset and what is in it. No torch, no service."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from autoclave.data.conversations import MIN_EXAMPLES
from autoclave.data.inspection import Inspector, as_json, inspect
from autoclave.errors import DataIssue, InputError

_READ_BYTES = 1 << 18


def validate(
    file: Annotated[Path, typer.Argument(help="chat JSONL to train on")],
    *,
    validation: Annotated[
        Path | None, typer.Option(help="chat JSONL to validate on; rows that both have are named")
    ] = None,
    base: Annotated[
        Path | None, typer.Option(help="base folder: counts tokens with its tokenizer and chat template")
    ] = None,
    max_seq_length: Annotated[int, typer.Option(min=8, help="rows with more tokens are counted")] = 2048,
    min_examples: Annotated[int, typer.Option(min=1, help="fewest conversations to train on")] = MIN_EXAMPLES,
    max_issues: Annotated[int, typer.Option(min=1, help="how many issues to show; all are counted")] = 50,
) -> None:
    """Check datasets: every broken rule with its line and what to do; duplicates, overlap, lengths.

    JSON on stdout, the same as tables on stderr. Exit status 1 if a file cannot be used.
    """
    from autoclave.data.light_tokenizer import LightTokenizer

    tokenizer = LightTokenizer(base) if base is not None else None
    training = Inspector(
        tokenizer=tokenizer,
        max_seq_length=max_seq_length,
        min_examples=min_examples,
        max_issues=max_issues,
    )
    report: dict[str, Any] = {"training": as_json(inspect(_chunks(file), training))}
    if validation is not None:
        inspector = Inspector(
            tokenizer=tokenizer,
            max_seq_length=max_seq_length,
            min_examples=1,
            max_issues=max_issues,
            against=training,
        )
        report["validation"] = as_json(inspect(_chunks(validation), inspector))
        report["overlap"] = as_json(inspector.overlap())
    _print_tables(report)
    typer.echo(json.dumps(report, indent=2, ensure_ascii=False))
    if not all(report[name]["valid"] for name in ("training", "validation") if name in report):
        raise typer.Exit(1)


def _chunks(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            while chunk := file.read(_READ_BYTES):
                yield chunk
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from error


def _print_tables(report: dict[str, Any]) -> None:
    console = Console(stderr=True)
    for name in ("training", "validation"):
        if name in report:
            _print_figures(console, name, report[name])
    if "overlap" in report:
        shared = report["overlap"]
        lines = ", ".join(f"{pair['line']} = {pair['first_line']}" for pair in shared["first"])
        console.print(f"In both files: {shared['num_rows']} rows{f' (lines {lines})' if lines else ''}")


def _print_figures(console: Console, name: str, found: dict[str, Any]) -> None:
    state = "can be used" if found["valid"] else f"cannot be used: {found['num_issues']} issues"
    table = Table(title=f"{name} file {state}", title_justify="left")
    for heading in ("", "min", "median", "p95", "max", "total"):
        table.add_column(heading, justify="left" if not heading else "right")
    for row, figures in (
        ("characters a row", found["characters"]),
        ("tokens a row", found["tokens"] and found["tokens"]["per_row"]),
    ):
        if figures:
            table.add_row(row, *(f"{figures[key]:,}" for key in ("min", "median", "p95", "max", "total")))
    console.print(table)
    roles = ", ".join(f"{count:,} {role}" for role, count in found["roles"].items())
    console.print(f"{found['num_examples']:,} rows; messages: {roles or 'none'}", highlight=False)
    if found["duplicates"]["num_rows"]:
        console.print(f"{found['duplicates']['num_rows']:,} rows say again what an earlier one said")
    if found["tokens"]:
        tokens = found["tokens"]
        console.print(
            f"{tokens['num_over_max_seq_length']:,} of {tokens['num_rows']:,} rows have more than "
            f"{tokens['max_seq_length']:,} tokens; {tokens['trained_tokens']:,} tokens are trained"
        )
    for issue in (*found["issues"], *found["warnings"]):
        console.print(str(DataIssue(**issue)), markup=False, highlight=False)
