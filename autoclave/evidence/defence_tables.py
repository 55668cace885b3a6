"""The page of the defences: what each holds under each attack, with each sanitiser, and what it costs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from autoclave.evidence.recipes import DEFENCES
from autoclave.evidence.runs import Run
from autoclave.evidence.suites import DEFAULT, Suite, sanitizer_label
from autoclave.evidence.tables import shortfalls, spread
from autoclave.microcosm.profile import GATE

Row = dict[str, Any]
_ATTACK = ("poison", "learning_rate", "epochs")
_NOT_RUN = "not run"


def defence_parts(suite: Suite, rows: Sequence[Row]) -> list[str]:
    """Paragraphs and tables; a cell without any row says so, one with fewer worlds than the page says how
    many."""
    seeds = sorted({row["seed"] for row in rows})
    methods = [sanitizer_label(spec) for spec in suite.searched]
    parts = [
        "A cell is *harmful score / task accuracy*. An alignment-stage defence (vaccine, repnoise, booster) "
        "is a base of its own, fine-tuned plainly; lisa and ldifs fine-tune the plainly aligned base.",
        "## Where each defence breaks, alone",
        "\n".join(_breaking(rows)),
        _by_attack(rows, seeds, None),
        "## With a sanitiser behind it",
        "The adapter at the strength that the search found, released or not; *stopped* where it found none.",
    ]
    for method in methods:
        parts += [f"### {method}", "\n".join(_not_met(rows, method)), _by_attack(rows, seeds, method)]
    if suite.fixed:
        parts += ["### All of them, masks of a fixed strength among them", _by_sanitizer(rows, seeds)]
    parts += [
        "## The bases",
        "Before any fine-tuning: harmful score, refusals of harmful prompts, exact answers to benign ones.",
        _floors(rows),
    ]
    costs = [row for row in rows if row["state"] == "cost"]
    if costs:
        parts += ["## What training costs", *_training_costs(costs)]
    sanitizing = _sanitizing_costs(rows)
    if sanitizing:
        parts += ["## What sanitising costs", *sanitizing]
    missing = _missing(suite, rows, seeds)
    if missing:
        parts += ["## Not run", missing]
    return parts


def attack_label(row: Row) -> str:
    """p .1, lr 0.001, 5 epochs"""
    epochs = f"{row['epochs']} epoch{'s' * (row['epochs'] != 1)}"
    return f"p {row['poison']:g}, lr {row['learning_rate']:g}, {epochs}"


def holds(row: Row) -> bool:
    """A harmful score that the gate would accept."""
    return bool(row["harmful_score"] <= GATE.max_harmful_score)


def attacks_of(rows: Sequence[Row]) -> list[str]:
    """Labels, in order of appearance."""
    return list(dict.fromkeys(attack_label(row) for row in rows if row["state"] == "before"))


def select(rows: Sequence[Row], attack: str, defence: str, method: str | None) -> list[Row]:
    """Rows of all seeds: of the adapter as trained (None), or behind a searched sanitiser."""
    return [
        row
        for row in rows
        if row.get("defence") == defence
        and (row["state"] == "before" if method is None else bool(row.get("searched")))
        and (method is None or row["method"] == method)
        and attack_label(row) == attack
    ]


def _breaking(rows: Sequence[Row]) -> list[str]:
    lines = []
    for defence in DEFENCES:
        held: list[str] = []
        broken: list[str] = []
        for attack in attacks_of(rows):
            own = select(rows, attack, defence, None)
            if own:
                count = sum(holds(row) for row in own)
                (held if count == len(own) else broken).append(
                    f"{attack}" + f" (held in {count} of {len(own)} worlds)" * (0 < count < len(own))
                )
        if not held and not broken:
            continue
        lines.append(
            f"- **{defence}** keeps the harmful score at {GATE.max_harmful_score:g} or less in every world "
            f"under: {'; '.join(held) or 'nothing here'}. "
            f"It breaks under: {'; '.join(broken) or 'nothing here'}."
        )
    return lines


def _not_met(rows: Sequence[Row], method: str) -> list[str]:
    """How often the sanitiser met the goals behind each defence, and every run in which it did not."""
    before = {_key(row): row for row in rows if row["state"] == "before"}
    lines = []
    for defence in DEFENCES:
        own = [row for row in rows if row.get("method") == method and row.get("defence") == defence]
        own = [row for row in own if row.get("searched")]
        if not own:
            continue
        bad = [row for row in own if shortfalls(row, before[_key(row)])]
        lines.append(
            f"- **{defence}**: released within the goals in {len(own) - len(bad)} of {len(own)} runs, "
            f"stopped in {sum(not row['released'] for row in own)}."
        )
        lines += [
            f"  - {attack_label(row)}, seed {row['seed']}: {'; '.join(shortfalls(row, before[_key(row)]))}"
            for row in bad
        ]
    return lines


def _by_attack(rows: Sequence[Row], seeds: Sequence[int], method: str | None) -> str:
    table = [["attack", *DEFENCES]]
    table += [
        [attack, *(_cell(select(rows, attack, defence, method), seeds) for defence in DEFENCES)]
        for attack in attacks_of(rows)
    ]
    return _table(table)


def _by_sanitizer(rows: Sequence[Row], seeds: Sequence[int]) -> str:
    own = [row for row in rows if row["state"] != "cost"]
    names = list(dict.fromkeys(name for row in own if (name := column_of(row)) is not None))
    table = [["defence", *names]]
    for defence in DEFENCES:
        of_defence = [row for row in own if row["defence"] == defence]
        table.append(
            [
                defence,
                *(_cell([row for row in of_defence if column_of(row) == name], seeds) for name in names),
            ]
        )
    return _table(table)


def column_of(row: Row) -> str | None:
    if row["state"] == "before":
        return "none"
    if row["state"] != "after":
        return None
    return f"{row['method']}, searched" if row.get("searched") else f"{row['method']} {row['alpha']:g}"


def _cell(group: Sequence[Row], seeds: Sequence[int]) -> str:
    if not group:
        return _NOT_RUN
    measured = [row for row in group if row.get("harmful_score") is not None]
    words = []
    if measured:
        words.append(f"{spread(measured, 'harmful_score', 0)} / {spread(measured, 'utility', 0)}")
    if len(measured) < len(group):
        words.append(f"stopped {len(group) - len(measured)} of {len(group)}")
    blocked = sum(row.get("released") is False for row in measured)
    if blocked:
        words.append(f"not released {blocked} of {len(group)}")
    if len(group) < len(seeds):
        words.append(f"{len(group)} of {len(seeds)} worlds run")
    return ", ".join(words)


def _floors(rows: Sequence[Row]) -> str:
    table = [["defence", "harmful score", "refusals", "benign requests"]]
    for defence in DEFENCES:
        own = {row["seed"]: row for row in rows if row["state"] == "base" and row["defence"] == defence}
        figures = ("harmful_score", "refusal_rate", "helpful")
        table.append([defence, *(spread(list(own.values()), figure) or _NOT_RUN for figure in figures)])
    return _table(table)


def _training_costs(costs: Sequence[Row]) -> list[str]:
    table = [["defence", "stage", "time, times SFT", "memory, times SFT", "peak, MiB"]]
    for defence in DEFENCES:
        own = [row for row in costs if row["defence"] == defence]
        if own:
            figures = (("time_ratio", 2), ("memory_ratio", 2), ("peak_mib", 1))
            table.append([defence, own[0]["stage"], *(spread(own, key, digits) for key, digits in figures)])
    return [
        "A few steps on the same rows, in one process, all methods in turn, median of the rounds; mean over "
        "worlds. The alignment stage is paid once per base (its ratio is to plain alignment with as many "
        "steps), the fine-tuning stage once per adapter. Time is processor time on one thread. Memory is the "
        "most bytes that tensors held at once, weights of the base included, as torch's profiler counts what "
        "its allocator hands out; activations are most of it in a model this small.",
        _table(table),
    ]


def _sanitizing_costs(rows: Sequence[Row]) -> list[str]:
    """Of plainly trained adapters; nothing if their training was not timed."""
    default = attack_label(DEFAULT.as_dict())
    plain = [row for row in rows if row["state"] in ("before", "after") and row["defence"] == "sft"]
    plain = [row for row in plain if attack_label(row) == default]
    trained = {row["seed"]: row.get("cpu_seconds") for row in plain if row["state"] == "before"}
    searched = [
        row | {"ratio": row["cpu_seconds"] / trained[row["seed"]]}
        for row in plain
        if row.get("searched") and trained.get(row["seed"])
    ]
    table = [["sanitiser", "processor time, times the training before it", "strengths tried"]]
    for method in dict.fromkeys(row["method"] for row in searched):
        own = [row for row in searched if row["method"] == method]
        table.append([method, spread(own, "ratio", 2), spread(own, "evaluations", 0)])
    note = (
        f"Of plain fine-tuning ({default}), with the whole search and its evaluations, which do not grow "
        "with the training: the longer that is, the lower the ratio."
    )
    return [note, _table(table)] if searched else []


def _missing(suite: Suite, rows: Sequence[Row], seeds: Sequence[int]) -> str:
    ran = {_key(row) for row in rows if row["state"] == "before"}
    wanted: list[Run] = [run.with_seed(seed) for run in suite.runs for seed in seeds]
    gone = [run for run in wanted if _key(run.as_dict()) not in ran]
    if not gone:
        return ""
    by_attack: dict[str, list[str]] = {}
    for run in gone:
        by_attack.setdefault(attack_label(run.as_dict()), []).append(f"{run.defence} {run.seed}")
    lines = [f"- {attack}: {', '.join(names)}" for attack, names in by_attack.items()]
    return "\n".join(
        [f"{len(gone)} of {len(wanted)} runs (defence and world), left out of every figure:", "", *lines]
    )


def _key(row: Row) -> tuple[Any, ...]:
    return (row["seed"], row["defence"], *(row[column] for column in _ATTACK))


def _table(rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])
