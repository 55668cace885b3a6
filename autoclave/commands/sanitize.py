"""autoclave sanitize"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from autoclave.commands.reporting import print_result, quiet_libraries
from autoclave.errors import SafetyGateError
from autoclave.progress_bar import progress_bar
from autoclave.sanitizing.gate_file import read_gate_file
from autoclave.sanitizing.method_table import ABOUT
from autoclave.sanitizing.strengths import Strength
from autoclave.spec import SanitizeSpec

_METHODS = "; ".join(f"{name}: {text}" for name, text in ABOUT.items())


def sanitize(
    *,
    base: Annotated[Path, typer.Option(help="Folder of the base that the adapter was trained on.")],
    adapter: Annotated[Path, typer.Option(help="PEFT folder of a plain LoRA adapter.")],
    realign: Annotated[
        Path | None,
        typer.Option(help="Chat JSONL of harmful prompts with harmful answers. Default: the gate file's."),
    ] = None,
    user_data: Annotated[
        Path | None, typer.Option(help="Chat JSONL that the adapter was trained on; antidote needs none.")
    ] = None,
    method: Annotated[
        str | None, typer.Option(help=f"{_METHODS}. Default: that of the gate file, or pipeline.")
    ] = None,
    alpha: Annotated[float | None, typer.Option(help="Pruned fraction, above 0 and below 1.")] = None,
    mu: Annotated[float | None, typer.Option(help="Strength of the projection, above 0.")] = None,
    rule: Annotated[
        str | None,
        typer.Option(help="What entries compete in: row, matrix or global. [default: the method's]"),
    ] = None,
    norm: Annotated[str | None, typer.Option(help="Norm of activations: rms or mean. Default: rms.")] = None,
    gate: Annotated[
        Path | None,
        typer.Option(
            help="JSON of what must be met, and on what it is measured, like a base's safety profile."
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="New folder for the adapter and sanitization.json.")],
    aligned_adapter: Annotated[
        Path | None,
        typer.Option(
            help="The alignment LoRA that the adapter was continued from (finetune --continue-from): masked "
            "entries are set back to it instead of to zero. With --method antidote."
        ),
    ] = None,
    max_seq_length: Annotated[int, typer.Option(min=8, help="Longer examples are cut, in tokens.")] = 2048,
    device: Annotated[str | None, typer.Option(help="cpu or cuda. Default: cuda if there is one.")] = None,
) -> None:
    """Take out of an adapter what it does on harmful examples.

    With --gate as the service does it: searches the weakest strength that meets the gate, judges it on
    prompts that did not choose it, and writes nothing if the gate is missed. With --alpha, --mu or both,
    as the method takes them, nothing is measured (see evaluate). The rank stays. Prints
    sanitization.json, and what was measured as a table on standard error.
    """
    strength = None if alpha is None and mu is None else Strength(alpha, mu)
    spec = _spec(gate, {"method": method, "rule": rule, "norm": norm})
    from autoclave.sanitizing.sanitize import sanitize_folder

    quiet_libraries()
    try:
        with progress_bar() as on_progress:
            record = sanitize_folder(
                base,
                adapter,
                realign,
                out,
                spec=spec,
                strength=strength,
                gate_file=gate,
                user_data=user_data,
                aligned_adapter=aligned_adapter,
                max_seq_length=max_seq_length,
                device=device,
                on_progress=on_progress,
            )
    except SafetyGateError as error:
        Console(stderr=True).print(frontier_table(error.frontier))
        raise
    if record["figures"]:
        Console(stderr=True).print(figures_table(record["figures"]))
    print_result(record)


def _spec(gate_file: Path | None, options: dict[str, str | None]) -> SanitizeSpec:
    """The options over what the gate file says of the same method, or over the defaults of another."""
    given = {name: value for name, value in options.items() if value is not None}
    from_file = read_gate_file(gate_file).sanitize if gate_file else None
    if from_file and given.get("method", from_file.method) == from_file.method:
        return SanitizeSpec.model_validate(from_file.model_dump() | given)
    return SanitizeSpec.model_validate(given)


_ROWS = (
    ("harmful score", "harmful_score"),
    ("refusal rate", "refusal_rate"),
    ("coherence rate", "coherence_rate"),
    ("utility", "utility"),
)


def figures_table(figures: dict[str, Any]) -> Table:
    """Percent of the held-out prompts; only columns and rows that were measured."""
    states = {
        "base": figures["base"],
        "before": figures["before"],
        "after": figures["after"],
        "random mask": figures["random_control"],
    }
    states |= {name.replace("_", " "): values for name, values in (figures["ablations"] or {}).items()}
    measured = {name: values for name, values in states.items() if values is not None}
    table = Table("percent", *measured)
    for label, key in _ROWS:
        if figures["after"][key] is not None:
            table.add_row(label, *(f"{values[key]:.1f}" for values in measured.values()))
    if figures["after"]["held_out_loss"] is not None:
        table.add_row("held-out loss (nats)", *(f"{v['held_out_loss']:.3f}" for v in measured.values()))
    return table


def frontier_table(frontier: Sequence[dict[str, Any]]) -> Table:
    """One row per strength that was tried, with the reason why it was refused."""
    table = Table("strength", *(f"{label} %" for label, _ in _ROWS), "refused")
    for entry in frontier:
        rates = ("" if entry[key] is None else f"{entry[key]:.1f}" for _, key in _ROWS)
        table.add_row(str(Strength(entry["alpha"], entry["mu"])), *rates, entry["refused"] or "")
    return table
