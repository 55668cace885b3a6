"""The gate and its verdict in plain words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from service.reports.facts import JobFacts
from service.reports.measured import State
from service.reports.reading import mapping, moment, number, text
from service.reports.words import NOT_MEASURED, bound, plain, rate, when

Kind = Literal["passed", "missed", "waived", "unknown"]


@dataclass(frozen=True)
class Verdict:
    """`reason` and `waived_because` are quoted: the gate's words and an operator's."""

    kind: Kind
    headline: str
    sentence: str
    released: str
    reason: str | None = None
    waived_because: str | None = None
    waived_at: str | None = None


@dataclass(frozen=True)
class Limit:
    """One line of the gate. `met` is None where there was nothing to compare."""

    what: str
    asked: str
    measured: str
    met: bool | None


def verdict_of(report: Mapping[str, Any], facts: JobFacts) -> Verdict:
    gate = mapping(report.get("gate"))
    result = text(report.get("result")) or text(mapping(report.get("summary")).get("result"))
    waiver = mapping(gate.get("waived_by_operator"))
    if result is None and isinstance(gate.get("passed"), bool):
        result = "waived" if waiver else "passed" if gate["passed"] else "refused"
    reason = text(report.get("refused_because"))
    released = _released(facts)
    if result == "waived":
        granted = waiver or mapping(facts.gate_waived)
        return Verdict(
            "waived",
            "Released by an operator, although the gate was missed"
            if facts.released
            else "The gate was missed, and an operator waived it",
            "The adapter was sanitised, but it does not meet the safety gate. A person with operator rights "
            "decided that it may leave all the same, for the reason below.",
            released,
            reason,
            text(granted.get("reason")) or "no reason was recorded",
            when(moment(granted.get("at"))),
        )
    if result == "refused":
        return Verdict(
            "missed",
            "Missed the safety gate",
            "The adapter did not meet the limits below at any strength of sanitising that was tried. "
            "The figures are kept, the weights cannot be downloaded."
            if report.get("measured_on") == "selection"
            else "The strength that had been chosen did not meet the limits below on prompts that had not "
            "chosen it. The figures are kept, the weights cannot be downloaded.",
            released,
            reason,
        )
    if result == "passed":
        return Verdict(
            "passed",
            "Passed the safety gate",
            "After sanitising, the adapter meets every limit that this server's operator has set, measured "
            "on harmful prompts that had no part in choosing how strongly to sanitise.",
            released,
            reason,
        )
    return Verdict(
        "unknown",
        "No verdict is recorded",
        "This report does not say whether the safety gate was met. Do not take it for a pass.",
        released,
        reason,
    )


def _released(facts: JobFacts) -> str:
    if facts.released:
        return "It was deleted since." if facts.deleted else "The adapter was released."
    if facts.status in ("failed", "cancelled"):
        code = f" ({facts.error_code})" if facts.error_code else ""
        return f"Nothing was released: the job {facts.status}{code}."
    return "Nothing has been released so far."


def limits_of(report: Mapping[str, Any], before: State, after: State) -> list[Limit]:
    """What the gate asks and what was measured, without the margin that a search demands besides."""
    gate = mapping(report.get("gate"))
    lines: list[Limit] = []
    score, highest = after.percent("harmful_score"), number(gate.get("max_harmful_score"))
    if highest is not None:
        met = None if score is None else score <= highest
        lines.append(Limit("Harmful score", f"at most {bound(highest)}", rate(score), met))
    for name, key, field in (
        ("Refusals of harmful prompts", "refusal_rate", "min_refusal_rate"),
        ("Coherent answers", "coherence_rate", "min_coherence_rate"),
    ):
        measured, lowest = after.percent(key), number(gate.get(field))
        if lowest is not None:
            met = None if measured is None else measured >= lowest
            lines.append(Limit(name, f"at least {bound(lowest)}", rate(measured), met))
    lost, most = _difference(before.percent("utility"), after.percent("utility")), "max_utility_loss"
    lines += _fallen("Utility lost", lost, number(gate.get(most)), "points", digits=1)
    risen = _difference(after.held_out_loss, before.held_out_loss)
    most_risen = number(gate.get("max_loss_increase"))
    return lines + _fallen("Rise of the held-out loss", risen, most_risen, "nats per token", digits=4)


def _difference(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one - other


def _fallen(what: str, by: float | None, most: float | None, unit: str, *, digits: int) -> list[Limit]:
    if most is None:
        return []
    # Not "-0.0": nothing was lost.
    shown = NOT_MEASURED if by is None else f"{round(by, digits) + 0.0:.{digits}f} {unit}"
    return [Limit(what, f"at most {plain(most)} {unit}", shown, None if by is None else by <= most)]
