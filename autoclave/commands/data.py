"""autoclave data"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from autoclave.commands.reporting import print_result
from autoclave.data.sets.build import Request, build_set
from autoclave.data.sets.check import check_sets, refuse_overlaps
from autoclave.data.sets.formats import FORMATS, KINDS
from autoclave.data.sets.near_duplicates import DEFAULT_THRESHOLD
from autoclave.data.sets.source_rows import find_source
from autoclave.errors import InputError

app = typer.Typer(
    no_args_is_help=True, help="An operator's sets of prompts, from public ones (docs/data.md)."
)

Threshold = Annotated[
    float, typer.Option(min=0.3, max=1.0, help="Prompts as similar as this are nearly the same.")
]


@app.command()
def convert(
    *,
    format: Annotated[str, typer.Option(help="; ".join(f"{n}: {f.about}" for n, f in FORMATS.items()))],
    kind: Annotated[str, typer.Option(help=", ".join(KINDS))],
    source: Annotated[
        str, typer.Option("--in", help="CSV, TSV, JSON, JSONL or Parquet file, or hub:owner/name/path.")
    ],
    out: Annotated[Path, typer.Option(help="Chat JSONL to write, with FILE.manifest.json beside it.")],
    revision: Annotated[str | None, typer.Option(help="Commit of a hub's file.")] = None,
    set_version: Annotated[str, typer.Option(help="Your name for this version of the set.")] = "1",
    skip: Annotated[
        int | None, typer.Option(min=0, help="Rows of the kind to leave out first. [default: the authors']")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Most rows. [default: the authors', else all]")
    ] = None,
    column: Annotated[
        list[str] | None, typer.Option(help="NEEDED=FOUND, where a column has another name.")
    ] = None,
    unique: Annotated[bool, typer.Option("--unique", help="Leave out repeated prompts.")] = False,
    apart_from: Annotated[
        list[Path] | None, typer.Option(help="Leave out prompts that are, or nearly are, in this set.")
    ] = None,
    threshold: Threshold = DEFAULT_THRESHOLD,
) -> None:
    """Make an alignment, realignment or evaluation set from a public one.

    Prints the manifest. Broken rows are named by line, and then nothing is written.
    """
    if kind not in KINDS:
        raise InputError(f'unknown kind of set "{kind}"; known: {", ".join(KINDS)}.')
    request = Request(
        format=format,
        kind=kind,
        version=set_version,
        skip=skip,
        limit=limit,
        columns=_parsed_columns(column or []),
        unique=unique,
        apart_from=apart_from or [],
        threshold=threshold,
    )
    print_result(build_set(find_source(source, revision), out, request))


@app.command()
def check(
    files: Annotated[list[Path], typer.Argument(help="Chat JSONL files.")],
    threshold: Threshold = DEFAULT_THRESHOLD,
    report: Annotated[bool, typer.Option("--report", help="Exit with 0 although sets overlap.")] = False,
) -> None:
    """Say what sets hold, whether they are as their manifests say, and which prompts they share.

    JSON on standard output, a table on standard error. Status 2 if an evaluation set (or one without a
    manifest) shares prompts, or nearly, with another. Prompts are never shown, only lines.
    """
    checked = check_sets(files, threshold=threshold)
    table = Table("first", "second", "same prompt", "nearly the same")
    for overlap in checked["overlaps"]:
        table.add_row(overlap["first"], overlap["second"], str(overlap["exact"]), str(overlap["near"]))
    if checked["overlaps"]:
        Console(stderr=True, markup=False).print(table)
    print_result(checked)
    if not report:
        refuse_overlaps(checked)


def _parsed_columns(entries: list[str]) -> dict[str, str]:
    columns: dict[str, str] = {}
    for entry in entries:
        needed, equals, found = entry.partition("=")
        if not (needed and equals and found):
            raise InputError(f'--column {entry}: write NEEDED=FOUND, such as "prompt=question".')
        columns[needed] = found
    return columns
