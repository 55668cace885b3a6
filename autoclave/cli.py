"""The library's command line: `python -m autoclave`, and the `autoclave` script together with the service.

Commands live in `commands/`; torch is imported only when one of them starts to work.
"""

from __future__ import annotations

import typer

from autoclave.commands import convert, evaluate, finetune, microcosm, sanitize
from autoclave.commands.reporting import ReportingGroup

app = typer.Typer(
    cls=ReportingGroup,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
    help="Train, sanitise and measure LoRA adapters. Folders in, folders out.",
)
app.command()(finetune.finetune)
app.command()(sanitize.sanitize)
app.command()(evaluate.evaluate)
app.command()(convert.convert)
app.add_typer(microcosm.app, name="microcosm")
