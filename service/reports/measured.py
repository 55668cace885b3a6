"""What a report measured on whom, whatever its age."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from service.reports.frontier import Frontier, Trial
from service.reports.intervals import Estimate, Group, Tone
from service.reports.reading import entries, mapping, number, text, whole
from service.reports.sparsity import Layer
from service.reports.words import bound, strength

RATES = {
    "harmful_score": "Harmful score",
    "refusal_rate": "Refusals",
    "coherence_rate": "Coherent answers",
    "utility": "Utility",
}
_STATES: Sequence[tuple[str, str, Tone]] = (
    ("base", "base model", "base"),
    ("before", "before", "before"),
    ("after", "after", "after"),
)
_CONTROLS = {
    "random_control": "random mask",
    "mask_alone": "mask alone",
    "projection_alone": "projection alone",
}


@dataclass(frozen=True)
class Rate:
    """Percent, with its 95 % interval where there is one."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class State:
    """A model and what was measured on it. None, or not there: not measured."""

    key: str
    label: str
    rates: Mapping[str, Rate]
    held_out_loss: float | None = None
    num_prompts: int | None = None
    num_examples: int | None = None
    num_undecided: int | None = None
    categories: Mapping[str, float] | None = None
    complete: bool = True

    def percent(self, rate: str) -> float | None:
        found = self.rates.get(rate)
        return None if found is None else found.value


def states(report: Mapping[str, Any]) -> list[State]:
    """Base, before, after; of a report without measurements what its summary says of them."""
    measurements, summary = mapping(report.get("measurements")), mapping(report.get("summary"))
    found = []
    for key, label, _ in _STATES:
        short = {rate: mapping(summary.get(rate)).get(key) for rate in RATES}
        found.append(_state(key, label, {**short, **mapping(measurements.get(key))}))
    return found


def controls(report: Mapping[str, Any]) -> list[State]:
    """Those that were measured."""
    figures = {"random_control": mapping(report.get("measurements")).get("random_control")}
    figures |= mapping(report.get("ablations"))
    return [
        _state(str(key), _CONTROLS.get(str(key), str(key).replace("_", " ")), mapping(values))
        for key, values in figures.items()
        if mapping(values)
    ]


def _state(key: str, label: str, figures: Mapping[str, Any]) -> State:
    rates = {}
    for name in RATES:
        value = number(figures.get(name))
        if value is not None:
            ends = [number(end) for end in entries(figures.get(f"{name}_interval"))]
            low, high = ends if len(ends) == 2 else (None, None)
            both = low is not None and high is not None
            rates[name] = Rate(value, low if both else None, high if both else None)
    scores = mapping(figures.get("category_scores"))
    kinds = {str(kind): score for kind, each in scores.items() if (score := number(each)) is not None}
    return State(
        key=key,
        label=label,
        rates=rates,
        held_out_loss=number(figures.get("held_out_loss")),
        num_prompts=whole(figures.get("num_prompts")),
        num_examples=whole(figures.get("num_examples")),
        num_undecided=whole(figures.get("num_undecided")),
        categories=kinds or None,
        complete=figures.get("complete") is not False,
    )


@dataclass(frozen=True)
class Tried:
    """A line of the frontier: a strength, what was measured, and why the gate refused it."""

    label: str
    state: State
    refused: str | None
    chosen: bool


def tried(report: Mapping[str, Any]) -> list[Tried]:
    """In the order of the report. Nothing was chosen where the search found nothing."""
    given = mapping(report.get("strength")) or mapping(report.get("summary"))
    wanted = number(given.get("alpha")), number(given.get("mu"))
    found_one = report.get("measured_on") != "selection"
    lines = []
    for entry in map(mapping, entries(report.get("frontier"))):
        at = number(entry.get("alpha")), number(entry.get("mu"))
        label = strength(*at)
        lines.append(
            Tried(label, _state(label, label, entry), text(entry.get("refused")), found_one and at == wanted)
        )
    return lines


def frontier_of(report: Mapping[str, Any]) -> Frontier:
    gate = mapping(report.get("gate"))
    _, before, _ = states(report)
    trials = []
    for line in tried(report):
        trial = _trial(line.state, refused=line.refused is not None, chosen=line.chosen)
        if trial is not None:
            trials.append(trial)
    utility, highest_loss = before.percent("utility"), number(gate.get("max_utility_loss"))
    return Frontier(
        trials,
        before=_trial(before, refused=True),
        max_harmful_score=number(gate.get("max_harmful_score")),
        min_utility=None if utility is None or highest_loss is None else utility - highest_loss,
    )


def _trial(state: State, *, refused: bool, chosen: bool = False) -> Trial | None:
    score = state.percent("harmful_score")
    if score is None:
        return None
    return Trial(
        state.label,
        score,
        state.percent("utility"),
        refused=refused,
        chosen=chosen,
        complete=state.complete,
    )


def groups_of(report: Mapping[str, Any]) -> list[Group]:
    """Base, before, after and the random mask, a group per rate, with the gate's line for `after`."""
    measured = states(report)
    tones = {key: tone for key, _, tone in _STATES}
    control = [state for state in controls(report) if state.key == "random_control"]
    lines = _limits(report, before=measured[1])
    groups = []
    for rate, title in RATES.items():
        estimates = []
        for state in (*measured, *control):
            found = state.rates.get(rate)
            value, low, high = (found.value, found.low, found.high) if found else (None, None, None)
            estimates.append(Estimate(state.label, tones.get(state.key, "control"), value, low, high))
        limit, side = lines.get(rate, (None, ""))
        groups.append(Group(title, estimates, limit, "" if limit is None else f"{side} {bound(limit)}"))
    return groups


def _limits(report: Mapping[str, Any], *, before: State) -> dict[str, tuple[float | None, str]]:
    gate = mapping(report.get("gate"))
    utility, loss = before.percent("utility"), number(gate.get("max_utility_loss"))
    lowest = None if utility is None or loss is None else round(max(0.0, utility - loss), 1)
    return {
        "harmful_score": (number(gate.get("max_harmful_score")), "gate: at most"),
        "refusal_rate": (number(gate.get("min_refusal_rate")), "gate: at least"),
        "coherence_rate": (number(gate.get("min_coherence_rate")), "gate: at least"),
        "utility": (lowest, "gate: at least"),
    }


def layers_of(report: Mapping[str, Any]) -> list[Layer]:
    layers = mapping(mapping(report.get("sparsity")).get("layers"))
    found = [(str(layer), number(fraction)) for layer, fraction in layers.items()]
    known = [Layer(layer, fraction) for layer, fraction in found if fraction is not None]
    # A database may have given the object back in the order of its keys as text.
    return sorted(known, key=lambda each: (not each.label.isdecimal(), len(each.label), each.label))
