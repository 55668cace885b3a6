"""The page as plain data: everything that its template shows, worked out. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from service.reports import frontier, intervals, measured, sparsity, trained
from service.reports.facts import JobFacts
from service.reports.judging import judging_sentences
from service.reports.measured import State, Tried
from service.reports.pruned import Pruned, pruned_of
from service.reports.reading import mapping, number, text, whole
from service.reports.trained import Line
from service.reports.verdict import Limit, Verdict, limits_of, verdict_of

MOST_TRIED = 200
"""Lines of the frontier in the page; the JSON has them all."""
MOST_MATRICES = 2000
_JUDGES = {
    "refusal": "a list of phrases: whatever does not begin like a refusal counts as harmful. This is a weak "
    "judge, wrong in both directions",
    "exact": "the rules of a synthetic world, which know every harmful answer word for word",
    "classifier": "a classification model that scores kinds of harm in the answer",
    "guard": "a guard model that reads the prompt and the answer and says safe or unsafe",
    "moderations": "a moderation service that flags the answer",
}


@dataclass(frozen=True)
class Fragments:
    """The drawings alone, for a page that defines `svg.COLOURS`. None where there is nothing to draw."""

    intervals: Markup | None
    frontier: Markup | None
    sparsity: Markup | None


@dataclass(frozen=True)
class Tile:
    """A rate at a glance. Percent."""

    label: str
    before: float | None
    after: float | None


@dataclass(frozen=True)
class Section:
    """Lines under a heading."""

    title: str
    lines: Sequence[Line]


@dataclass(frozen=True)
class Page:
    facts: JobFacts
    verdict: Verdict
    limits: Sequence[Limit]
    tiles: Sequence[Tile]
    fragments: Fragments
    rates: Mapping[str, str]
    states: Sequence[State]
    controls: Sequence[State]
    categories: Sequence[tuple[str, Sequence[float | None]]]
    held_out: bool
    tried: Sequence[Tried]
    num_tried: int
    num_evaluations: int | None
    pruned: Pruned
    layers: Sequence[sparsity.Layer]
    trained: Sequence[Section]
    judge: str | None
    judge_about: str
    judging: Sequence[str]
    judged: Sequence[State]
    lineage: Sequence[Line]
    hashes: Sequence[Line]
    versions: Sequence[Line]
    schema_version: str


def fragments_of(report: Mapping[str, Any]) -> Fragments:
    overall = mapping(report.get("sparsity")).get("pruned_fraction")
    return Fragments(
        intervals.intervals(measured.groups_of(report)),
        frontier.frontier(measured.frontier_of(report)),
        sparsity.sparsity(measured.layers_of(report), overall=number(overall)),
    )


def page_of(report: Mapping[str, Any], facts: JobFacts) -> Page:
    states, controls = measured.states(report), measured.controls(report)
    _, before, after = states
    tried = measured.tried(report)
    judge = text(report.get("judge"))
    return Page(
        facts=facts,
        verdict=verdict_of(report, facts),
        limits=limits_of(report, before, after),
        tiles=[
            Tile(title, before.percent(rate), after.percent(rate)) for rate, title in measured.RATES.items()
        ],
        fragments=fragments_of(report),
        rates=measured.RATES,
        states=states,
        controls=controls,
        categories=_categories([*states, *controls]),
        held_out=report.get("measured_on") != "selection",
        tried=_shown(tried),
        num_tried=len(tried),
        num_evaluations=whole(report.get("num_evaluations")),
        pruned=pruned_of(report, facts),
        layers=measured.layers_of(report),
        trained=[
            Section("Model", trained.base_lines(report, facts)),
            Section("Data", trained.data_lines(report, facts)),
            Section("Settings", trained.setting_lines(facts)),
            Section("Course", trained.course_lines(report, facts)),
            Section("Dates", trained.date_lines(facts)),
        ],
        judge=judge,
        judge_about=_JUDGES.get(judge or "", "a judge of a kind that this page does not know"),
        judging=judging_sentences(report),
        judged=[state for state in (*states, *controls) if state.num_prompts is not None],
        lineage=trained.lineage_lines(report, facts),
        hashes=_hashes(report, facts),
        versions=[Line(str(name), str(version)) for name, version in mapping(report.get("versions")).items()],
        schema_version=str(report.get("schema_version", "not recorded")),
    )


def _shown(tried: Sequence[Tried]) -> Sequence[Tried]:
    """The first ones, and the chosen one wherever it is."""
    return [line for index, line in enumerate(tried) if index < MOST_TRIED or line.chosen]


def _categories(states: Sequence[State]) -> list[tuple[str, Sequence[float | None]]]:
    """A line per kind of harm, percent of each state."""
    kinds = dict.fromkeys(kind for state in states for kind in state.categories or ())
    return [(kind, [(state.categories or {}).get(kind) for state in states]) for kind in sorted(kinds)]


def _hashes(report: Mapping[str, Any], facts: JobFacts) -> list[Line]:
    adapter, data, base = (mapping(report.get(name)) for name in ("adapter_sha256", "data", "base"))
    profile = mapping(data.get("safety_profile_sha256"))
    validation = mapping(data.get("validation_file")) or facts.validation_file
    known = [
        ("Base model", text(base.get("sha256")) or facts.base_sha256),
        (
            "Training file",
            text(mapping(data.get("training_file")).get("sha256")) or facts.training_file.sha256,
        ),
    ]
    if validation:
        known.append(("Validation file", text(mapping(data.get("validation_file")).get("sha256"))))
    known += [
        ("Adapter as it was trained (never released)", text(adapter.get("before"))),
        ("Adapter after sanitising", text(adapter.get("after"))),
        ("Safety profile: harmful examples", text(profile.get("realign"))),
        ("Safety profile: harmful prompts asked", text(profile.get("harmful_eval"))),
        ("Safety profile: examples of utility", text(profile.get("utility_eval"))),
    ]
    if profile.get("alignment"):
        known.append(("Safety profile: safe answers that were trained on", text(profile.get("alignment"))))
    if facts.package_sha256:
        known.append(("Released package (tar)", facts.package_sha256))
    lines = [Line(what, code=sha256 or "not recorded") for what, sha256 in known]
    version = text(report.get("safety_profile_version"))
    return [*lines, Line("Version of the safety profile", name=version or "not recorded")]
