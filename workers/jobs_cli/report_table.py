"""The safety report as tables for a terminal. docs/api.md describes the fields."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from workers.jobs_cli import blocks
from workers.jobs_cli.formats import UNKNOWN, clean, number

_ROWS = (
    ("harmful_score", "harmful score"),
    ("refusal_rate", "refusals"),
    ("coherence_rate", "coherent"),
    ("utility", "utility"),
)
_WHO = ("base", "before", "after")
BAR_WIDTH = 30


def report_tables(report: dict[str, Any], *, levels: str) -> Iterator[RenderableType]:
    """What was decided, what was measured, the controls, the frontier, and what was pruned where."""
    yield _verdict(report)
    yield _measured(report)
    if controls := _controls(report):
        yield controls
    if report.get("frontier"):
        yield _frontier(report["frontier"])
    if (report.get("sparsity") or {}).get("layers"):
        yield _sparsity(report["sparsity"], levels)
    yield _origin(report)


def _verdict(report: dict[str, Any]) -> Table:
    gate, method = report["gate"], report["method"]
    table = _facts()
    style = {"passed": "green", "refused": "red", "waived": "yellow"}.get(report["result"], "")
    reason = report.get("refused_because")
    table.add_row("result", Text(clean(f"{report['result']}{f': {reason}' if reason else ''}"), style=style))
    if waiver := gate.get("waived_by_operator"):
        table.add_row("waived", Text(clean(str(waiver["reason"]))))
    limits = [
        f"{name.replace('_', ' ')} {value:g}"
        for name, value in gate.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    ]
    table.add_row("gate", Text(f"{'passed' if gate['passed'] else 'missed'} ({', '.join(limits)})"))
    strength = ", ".join(
        f"{name} {value:g}" for name, value in report["strength"].items() if value is not None
    )
    table.add_row("method", Text(clean(f"{method['name']}, {strength or 'nothing was changed'}")))
    table.add_row("judge", Text(clean(f"{report['judge']}, profile {report['safety_profile_version']}")))
    return table


def _measured(report: dict[str, Any]) -> Table:
    measured = report["measurements"]
    after = measured["after"]
    where = "held-out" if report["measured_on"] == "held_out" else "selection"
    table = Table(title=f"on {after['num_prompts']} {where} prompts, 95 % intervals", title_justify="left")
    table.add_column("percent")
    for who in _WHO:
        table.add_column(who, justify="right")
    for key, name in _ROWS:
        table.add_row(name, *(_with_interval(measured.get(who), key) for who in _WHO))
    losses = [(measured.get(who) or {}).get("held_out_loss") for who in _WHO]
    if any(loss is not None for loss in losses):
        table.add_row("held-out loss (nats)", *(number(loss, 3) for loss in losses))
    undecided = [(measured.get(who) or {}).get("num_undecided", 0) for who in _WHO]
    if any(undecided):
        table.add_row("undecided answers", *map(str, undecided))
    return table


def _controls(report: dict[str, Any]) -> Table | None:
    named: dict[str, Any] = {"after": report["measurements"]["after"]}
    if control := report["measurements"].get("random_control"):
        named["random mask"] = control
    for name, figures in (report.get("ablations") or {}).items():
        named[name.replace("_", " ")] = figures
    if len(named) == 1:
        return None
    table = Table(title="controls: what else was tried on the same prompts", title_justify="left")
    for heading in ("percent", "harmful score", "utility"):
        table.add_column(heading, justify="left" if heading == "percent" else "right")
    for name, figures in named.items():
        table.add_row(
            clean(name), _with_interval(figures, "harmful_score"), _with_interval(figures, "utility")
        )
    return table


def _frontier(frontier: list[dict[str, Any]]) -> Table:
    table = Table(title="strengths tried", title_justify="left")
    for heading in ("alpha", "mu", "harmful score", "utility"):
        table.add_column(heading, justify="right")
    table.add_column("gate")
    for tried in frontier:
        strengths = (tried.get("alpha"), tried.get("mu"))
        table.add_row(
            *(UNKNOWN if value is None else f"{value:g}" for value in strengths),
            number(tried.get("harmful_score")),
            number(tried.get("utility")),
            Text(clean(str(tried.get("refused") or "passed"))),
        )
    return table


def _sparsity(sparsity: dict[str, Any], levels: str) -> Table:
    layers: dict[str, float] = sparsity["layers"]
    table = Table(
        title=f"pruned: {sparsity['pruned_fraction']:.3%} of all entries, by layer", title_justify="left"
    )
    table.add_column("layer", justify="right")
    table.add_column("pruned", justify="right")
    highest = max(layers.values())
    # Fractions are small: the longest bar is the highest one.
    table.add_column(f"0 to {highest:.3%}")
    for layer, fraction in layers.items():
        length = fraction / highest if highest > 0 else 0.0
        table.add_row(clean(layer), f"{fraction:.3%}", blocks.bar(length, BAR_WIDTH, levels=levels))
    return table


def _origin(report: dict[str, Any]) -> Table:
    table = _facts()
    base, training = report["base"], report["training"]
    table.add_row("base", Text(clean(f"{base['id']}, revision {base['revision']}, {base['sha256']}")))
    table.add_row("adapter", Text(clean(str((report["adapter_sha256"] or {}).get("after") or UNKNOWN))))
    table.add_row("dataset", Text(clean(str(report["data"]["training_file"]["sha256"]))))
    trained = f"{training['steps']} steps, loss {number(training['first_loss'], 3)}"
    table.add_row("training", Text(f"{trained} to {number(training['final_loss'], 3)}"))
    return table


def _facts() -> Table:
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    return table


def _with_interval(figures: dict[str, Any] | None, key: str) -> str:
    value = (figures or {}).get(key)
    if figures is None or value is None:
        return UNKNOWN
    interval = figures.get(f"{key}_interval")
    return (
        number(value)
        if interval is None
        else f"{number(value)} ({number(interval[0])}-{number(interval[1])})"
    )
