"""autoclave protocol"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from autoclave.commands.reporting import print_result, quiet_libraries
from autoclave.progress_bar import progress_bar
from autoclave.protocol.config_file import read_config, shipped_configs, shipped_text

app = typer.Typer(
    no_args_is_help=True,
    help="The paper's protocol from one file: align, attack, fine-tune, sanitise, measure.",
)

Config = Annotated[str, typer.Option(help="YAML file, or the name of a shipped config.")]
Out = Annotated[Path, typer.Option(help="Folder of the run; run again to go on.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", help="FIELD=VALUE over the file, e.g. attack.p=0.1; as often as needed."),
]


@app.command("list")
def list_configs() -> None:
    """The shipped configs, as JSON: name and what it is."""
    print_result({name: _about(path) for name, path in shipped_configs().items()})


@app.command()
def show(name: Annotated[str, typer.Argument(help="Name of a shipped config.")]) -> None:
    """Write a shipped config to standard output, to be filled in."""
    typer.echo(shipped_text(name), nl=False)


@app.command()
def status(config: Config, out: Out, settings: Settings = None) -> None:
    """Check the config and its files, and say which steps are done. Makes nothing.

    JSON on standard output, a table on standard error.
    """
    from autoclave.protocol.runner import status_of

    rows = status_of(read_config(config, settings or ()), out)
    table = Table("step", "state", "seconds", "changed since its latest result")
    for row in rows:
        seconds = "" if row["seconds"] is None else f"{row['seconds']:.1f}"
        table.add_row(row["step"], row["state"], seconds, escape("; ".join(row["changed"])))
    Console(stderr=True).print(table)
    print_result({"steps": rows})


@app.command()
def run(config: Config, out: Out, settings: Settings = None) -> None:
    """Run every step that OUT does not hold yet; a run that was stopped goes on.

    Writes OUT/result.json and OUT/result.md; prints the JSON, and the measured figures beside the published
    ones as tables on standard error. OUT will hold harmful rows and answers: keep it to yourself.
    """
    protocol = read_config(config, settings or ())
    from autoclave.protocol.report import measured_rows, published_rows
    from autoclave.protocol.runner import run_protocol

    quiet_libraries()
    console = Console(stderr=True)
    with progress_bar(console) as on_progress:
        result = run_protocol(
            protocol,
            out,
            on_progress=on_progress,
            say=lambda text: console.print(text, markup=False, highlight=False),
        )
    for title, (heading, rows) in (
        ("measured", measured_rows(result)),
        ("published by others", published_rows(result)),
    ):
        if rows:
            table = Table(*heading, title=title)
            for row in rows:
                table.add_row(*map(escape, row))
            console.print(table)
    print_result(result)


def _about(path: Path) -> str:
    import yaml

    return str(yaml.safe_load(path.read_text(encoding="utf-8")).get("about", ""))
