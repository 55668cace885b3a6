"""The library's command line: `python -m autoclave`, and the `autoclave` script together with the service.

Commands live in `commands/`; torch is imported only when one of them starts to work.
"""

from __future__ import annotations

import os

import typer

from autoclave.commands import (
    align,
    convert,
    data,
    evaluate,
    evidence,
    finetune,
    judge,
    microcosm,
    protocol,
    sanitize,
    task,
    validate,
)
from autoclave.commands.reporting import ReportingGroup

# Idle OpenMP threads spin by default and steal the cores of whoever they wait for. On two busy cores that
# made training 5 to 16 times slower; on idle ones sleeping costs little. Read when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

app = typer.Typer(
    cls=ReportingGroup,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
    help="Train, sanitise and measure LoRA adapters. Folders in, folders out.",
)
app.command()(align.align)
app.command()(finetune.finetune)
app.command()(sanitize.sanitize)
app.command()(evaluate.evaluate)
app.command()(judge.judge)
app.command()(convert.convert)
app.command()(validate.validate)
app.add_typer(data.app, name="data")
app.add_typer(microcosm.app, name="microcosm")
app.add_typer(evidence.app, name="evidence")
app.add_typer(protocol.app, name="protocol")
app.add_typer(task.app, name="task")
