"""autoclave sanitize"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from autoclave.commands.reporting import print_result, quiet_libraries
from autoclave.progress_bar import progress_bar


def sanitize(
    *,
    base: Annotated[Path, typer.Option(help="Folder of the base that the adapter was trained on.")],
    adapter: Annotated[Path, typer.Option(help="PEFT folder of a plain LoRA adapter.")],
    realign: Annotated[Path, typer.Option(help="Chat JSONL of harmful prompts with harmful answers.")],
    alpha: Annotated[float, typer.Option(help="Pruned fraction of each row, above 0 and below 1.")],
    out: Annotated[Path, typer.Option(help="New folder for the adapter and sanitization.json.")],
    method: Annotated[str, typer.Option(help="antidote (arXiv 2408.09600).")] = "antidote",
    max_seq_length: Annotated[int, typer.Option(min=8, help="Longer examples are cut, in tokens.")] = 2048,
    device: Annotated[str | None, typer.Option(help="cpu or cuda. [default: cuda if there is one]")] = None,
) -> None:
    """Prune the entries of an adapter that matter most on harmful examples.

    The rank stays. The strength is the one given; nothing is measured here (see evaluate). Prints
    sanitization.json.
    """
    from autoclave.sanitizing.sanitize import sanitize_folder

    quiet_libraries()
    with progress_bar() as on_progress:
        record = sanitize_folder(
            base,
            adapter,
            realign,
            alpha,
            out,
            method=method,
            max_seq_length=max_seq_length,
            device=device,
            on_progress=on_progress,
        )
    print_result(record)
