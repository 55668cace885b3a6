"""autoclave evidence"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from autoclave.commands.reporting import print_result, quiet_libraries
from autoclave.errors import InputError
from autoclave.evidence.runner import FIRST_SEED, finished_rows, run_suites
from autoclave.evidence.suites import SUITES, suites_named
from autoclave.microcosm.sizes import SizeName
from autoclave.progress_bar import progress_bar

app = typer.Typer(no_args_is_help=True, help="Sweeps and controls over the microcosm: tables and plots.")


@app.callback()
def evidence() -> None:
    """Keeps `run` a subcommand: typer would otherwise fold a single command into its group."""


@app.command()
def run(
    *,
    suite: Annotated[str, typer.Option(help=f"all, or one of: {', '.join(SUITES)}.")],
    out: Annotated[Path, typer.Option(help="Folder for the pages; files of the same suite are replaced.")],
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds, each with a world of its own.")] = 3,
    first_seed: Annotated[
        int, typer.Option(min=0, help="The first of them. Those below 101 were used to choose defaults.")
    ] = FIRST_SEED,
    size: Annotated[SizeName, typer.Option(help="Size of the worlds.")] = "small",
    sst2: Annotated[
        Path | None, typer.Option(help="Folder of SST-2: the user's task is real then, else synthetic.")
    ] = None,
    work: Annotated[
        Path | None,
        typer.Option(
            help="Folder for worlds, adapters and finished runs; run again to go on. [default: OUT/work]"
        ),
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Processes, each on one thread.")] = 1,
    finished_only: Annotated[
        bool, typer.Option("--finished-only", help="Run nothing: write the pages of what is finished.")
    ] = False,
) -> None:
    """Run a suite and write CSV, JSON, PNG, SVG and a Markdown page.

    Minutes to hours on two cores; what is finished is kept and not run again. Prints the pages as JSON.
    """
    from autoclave.evidence.page import write_suite

    quiet_libraries()
    suites = suites_named(suite)
    folder, chosen = work or out / "work", range(first_seed, first_seed + seeds)
    if finished_only:
        rows = finished_rows(suites, folder, seeds=chosen, size=size, sst2_dir=sst2)
        suites = [each for each in suites if any(row["suite"] == each.name for row in rows)]
        if not suites:
            raise InputError(f"nothing is finished in {folder}. Run without --finished-only first.")
    else:
        with progress_bar() as on_progress:
            rows = run_suites(
                suites, folder, seeds=chosen, size=size, sst2_dir=sst2, jobs=jobs, on_progress=on_progress
            )
    options = f" --size {size}" * (size != "small") + f" --first-seed {first_seed}" * (
        first_seed != FIRST_SEED
    )
    options += " --sst2 DIR" * (sst2 is not None)
    pages = [
        write_suite(
            each,
            [row for row in rows if row["suite"] == each.name],
            out,
            command=f"autoclave evidence run --suite {each.name} --seeds {seeds}{options} --out {out}",
        )
        for each in suites
    ]
    print_result({"pages": [str(page) for page in pages], "rows": len(rows)})
