"""autoclave convert"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from autoclave.commands.reporting import print_result
from autoclave.data.convert import FORMATS, convert_file


def convert(
    format: Annotated[str, typer.Option(help=", ".join(f"{n}: {f.about}" for n, f in FORMATS.items()))],
    source: Annotated[Path, typer.Option("--in", help="The file to convert.")],
    out: Annotated[Path, typer.Option(help="The chat JSONL to write; an older file is replaced.")],
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first rows. [default: all]")] = None,
) -> None:
    """Turn a public dataset into chat JSONL.

    Row by row, in constant memory. Broken rows are named with their line, and then nothing is written.
    Prints counts as JSON.
    """
    print_result(convert_file(source, out, format, limit=limit))
