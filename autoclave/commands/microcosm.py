"""autoclave microcosm"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from autoclave.commands.reporting import print_result, quiet_libraries
from autoclave.progress_bar import progress_bar

app = typer.Typer(no_args_is_help=True, help="A small synthetic world where every claim can be checked.")


@app.callback()
def microcosm() -> None:
    """Keeps `build` a subcommand: typer would otherwise fold a single command into its group."""


@app.command()
def build(
    out: Annotated[Path, typer.Option(help="New folder for base/, aligned/, data/, world.json, card.json.")],
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same world.")] = 0,
) -> None:
    """Make a world with its base model, its aligned base and its datasets.

    Draws it, pretrains, aligns, writes the data and measures: minutes on two cores. Prints the card as JSON.
    """
    from autoclave.microcosm.build import build as build_world

    quiet_libraries()
    with progress_bar() as on_progress:
        card = build_world(out, seed=seed, on_progress=on_progress)
    print_result(card)
