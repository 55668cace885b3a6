"""What was taken out of the adapter, in words and by matrix."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from service.reports.facts import JobFacts
from service.reports.reading import mapping, number, text, whole
from service.reports.trained import Line
from service.reports.words import NOT_MEASURED, count, plain, share

_METHODS = {
    "antidote": "Antidote (arXiv 2408.09600): the entries that matter most on harmful examples were set to "
    "zero.",
    "antidote-protected": "Antidote's scores, but entries that matter for the job's own data were spared.",
    "projection": "The adapter's effect on harmful inputs was projected away, keeping its effect on the "
    "job's own data. Nothing was pruned.",
    "pipeline": "First the adapter's effect on harmful inputs was projected away, keeping its effect on the "
    "job's own data; then Antidote's mask (arXiv 2408.09600) set to zero the entries that still matter most "
    "on harmful examples.",
}
_NORMS = {"rms": "root mean square of each input (rms)", "mean": "mean over examples of each root (mean)"}
_COMPETE = {
    "row": "within each row of each matrix",
    "matrix": "within each matrix",
    "global": "over all matrices together",
}


@dataclass(frozen=True)
class Matrix:
    name: str
    pruned: float | None
    changed: float | None


@dataclass(frozen=True)
class Pruned:
    """`share` is of all entries, between 0 and 1. Without a record nothing was applied: no strength met the
    gate."""

    about: str
    lines: list[Line]
    matrices: list[Matrix]
    share: float | None
    recorded: bool


def pruned_of(report: Mapping[str, Any], facts: JobFacts) -> Pruned:
    method = mapping(report.get("method")) or facts.record
    strength = mapping(report.get("strength")) or mapping(report.get("summary"))
    sparsity, change = mapping(report.get("sparsity")), mapping(report.get("relative_change"))
    name = text(method.get("name")) or text(method.get("method"))
    fraction = number(sparsity.get("pruned_fraction"))
    lines = [
        Line("Sanitiser", code=name or "not recorded"),
        *_strength_lines(strength, method),
        Line("Share of entries pruned", _pruned_share(fraction, facts)),
        Line(
            "Size of the change",
            f"{share(number(change.get('all')))} of the adapter's own size (Frobenius norms)"
            if number(change.get("all")) is not None
            else NOT_MEASURED,
        ),
        *_example_lines(facts.record),
    ]
    return Pruned(
        _METHODS.get(name or "") or text(method.get("about")) or "The sanitiser is not recorded.",
        lines,
        _matrices(mapping(sparsity.get("matrices")), mapping(change.get("matrices"))),
        fraction,
        recorded=bool(sparsity or change),
    )


def _strength_lines(strength: Mapping[str, Any], method: Mapping[str, Any]) -> list[Line]:
    alpha, mu, ridge = number(strength.get("alpha")), number(strength.get("mu")), number(method.get("ridge"))
    if alpha is None:
        lines = [
            Line(
                "Strength of the mask (alpha)",
                "none: nothing was pruned" if mu is not None else "not recorded",
            )
        ]
    else:
        where = _COMPETE.get(str(method.get("rule_name")), "")
        wanted = f"{plain(alpha)}: the share that was to be pruned, {where}".rstrip(", ")
        lines = [Line("Strength of the mask (alpha)", wanted)]
        norm = text(method.get("norm"))
        lines += [Line("Measure of activity", _NORMS.get(norm, norm))] if norm else []
    if mu is None:
        return [
            *lines,
            Line(
                "Strength of the projection (mu)",
                "none: nothing was projected" if alpha is not None else "not recorded",
            ),
        ]
    with_ridge = "" if ridge is None else f" (ridge {plain(ridge)})"
    words = f"{plain(mu)}: how much harmful inputs weigh beside the job's own in the projection{with_ridge}"
    return [*lines, Line("Strength of the projection (mu)", words)]


def _pruned_share(fraction: float | None, facts: JobFacts) -> str:
    pruned, total = whole(facts.record.get("pruned")), whole(facts.record.get("entries"))
    if fraction is None or pruned is None or total is None:
        return share(fraction)
    return f"{share(fraction)}: {count(pruned)} of {count(total)} (more than alpha, because counts round up)"


def _example_lines(record: Mapping[str, Any]) -> list[Line]:
    harmful, user = whole(record.get("realign_examples")), whole(record.get("user_examples"))
    lines = []
    if harmful is not None:
        lines.append(Line("Harmful examples looked at", f"{count(harmful)}, the operator's"))
    if user is not None:
        lines.append(Line("Own examples looked at", f"{count(user)}, of the training file"))
    return lines


def _matrices(sparsity: Mapping[str, Any], change: Mapping[str, Any]) -> list[Matrix]:
    names = dict.fromkeys([*sparsity, *change])
    return [Matrix(_short(str(name)), number(sparsity.get(name)), number(change.get(name))) for name in names]


def _short(name: str) -> str:
    """Without what all of them begin with."""
    return name.removeprefix("base_model.model.").removeprefix("model.")
